"""Every method as one row: what the command line, comparisons and tests know about it."""

from leansplit.server_app.methods.auxiliary import CSE_FSL, FSL_SAGE, HERON_SFL
from leansplit.server_app.methods.fedavg import FEDAVG
from leansplit.server_app.methods.frozen import FROZEN
from leansplit.server_app.methods.ho_fl import HO_FL
from leansplit.server_app.methods.ho_sfl import HO_SFL
from leansplit.server_app.methods.hosl import HOSL
from leansplit.server_app.methods.spec import METHODS, MethodSpec, is_used, register_method
from leansplit.server_app.methods.splitfed import SFLV1, SFLV2
from leansplit.server_app.methods.zeroth_order_federated import DECOMFL, FEDZO
from leansplit.server_app.methods.zo_split import MU_SPLITFED, ZO_SFL

for _spec in (
    HO_SFL,
    HERON_SFL,
    SFLV1,
    SFLV2,
    CSE_FSL,
    FSL_SAGE,
    MU_SPLITFED,
    ZO_SFL,
    HOSL,
    DECOMFL,
    FEDZO,
    HO_FL,
    FEDAVG,
    FROZEN,
):
    register_method(_spec)

__all__ = ["METHODS", "MethodSpec", "is_used", "register_method"]
