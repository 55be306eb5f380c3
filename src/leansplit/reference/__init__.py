"""Each method as one plain loop, readable in one sitting: documentation and oracle."""

from leansplit.reference.cse_fsl import cse_fsl
from leansplit.reference.fedavg import fedavg
from leansplit.reference.frozen import frozen
from leansplit.reference.fsl_sage import fsl_sage
from leansplit.reference.heron_sfl import heron_sfl
from leansplit.reference.ho_sfl import ho_sfl
from leansplit.reference.splitfed_v1 import splitfed_v1
from leansplit.reference.splitfed_v2 import splitfed_v2

__all__ = [
    "cse_fsl",
    "fedavg",
    "frozen",
    "fsl_sage",
    "heron_sfl",
    "ho_sfl",
    "splitfed_v1",
    "splitfed_v2",
]
