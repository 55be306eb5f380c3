"""Each method as one plain loop, readable in one sitting: documentation and oracle."""

from leansplit.reference.cse_fsl import cse_fsl
from leansplit.reference.decomfl import decomfl
from leansplit.reference.fedavg import fedavg
from leansplit.reference.fedzo import fedzo
from leansplit.reference.frozen import frozen
from leansplit.reference.fsl_sage import fsl_sage
from leansplit.reference.heron_sfl import heron_sfl
from leansplit.reference.ho_fl import ho_fl
from leansplit.reference.ho_sfl import ho_sfl
from leansplit.reference.hosl import hosl
from leansplit.reference.mu_splitfed import mu_splitfed
from leansplit.reference.splitfed_v1 import splitfed_v1
from leansplit.reference.splitfed_v2 import splitfed_v2
from leansplit.reference.zo_sfl import zo_sfl

__all__ = [
    "cse_fsl",
    "decomfl",
    "fedavg",
    "fedzo",
    "frozen",
    "fsl_sage",
    "heron_sfl",
    "ho_fl",
    "ho_sfl",
    "hosl",
    "mu_splitfed",
    "splitfed_v1",
    "splitfed_v2",
    "zo_sfl",
]
