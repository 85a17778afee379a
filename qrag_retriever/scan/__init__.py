"""The exact top-k pass over the chunk matrix: one hop reads every chunk once.

`FloatScan` (plain float32), `Int8Scan` (int8 codes with a proved error bound, needs the ``fast`` extra) and
`TorchScan` (CUDA, MPS) answer the same question with the same result; `make_scan` chooses.
"""

from qrag_retriever.scan.base import Scan, ScanKind, StateQuery, StepScan
from qrag_retriever.scan.factory import make_scan

__all__ = ["Scan", "ScanKind", "StateQuery", "StepScan", "make_scan"]
