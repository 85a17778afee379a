"""An encoder's transformer as an ONNX file, made here from its weights.

By torch's own exporter: the packages that export for sentence-transformers' backends hold transformers back
(optimum-onnx below 4.58, optimum-intel below 5.6), and want a model folder or a download where we have an encoder.
Only the transformer is exported. Pooling and all that follows stay in torch: they take hardly any time.
"""

from __future__ import annotations

import inspect
import logging
import shutil
import tempfile
import threading
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qrag_retriever._files import whole_folder
from qrag_retriever.checksums import CHECKSUMS_NAME, checksum_lines, verify_checksums
from qrag_retriever.encoders import Encoder
from qrag_retriever.errors import ModelFolderError

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

INPUTS = ("input_ids", "attention_mask")
_MODEL_NAME = "model.onnx"
# Part of a folder's name, so that what an older release wrote is not read.
_FORMAT_VERSION = 1
# Protocol buffers end at 2 GiB; larger weights go to a file beside the model.
_MOST_BYTES_INSIDE = 1_500_000_000
# torch sets global state while it exports.
_EXPORT_LOCK = threading.Lock()


class Exports:
    """A folder of exported transformers: one that lasts, or one of this process alone."""

    def __init__(self, folder: Path | None = None) -> None:
        """Take a folder, which is made when it is first written to; None: a temporary one, gone with this object."""
        self._folder = folder
        self._is_temporary = folder is None

    @property
    def folder(self) -> Path:
        """Where exports are."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="qrag-exports-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        return self._folder

    def has(self, identity: str) -> bool:
        """Tell whether an encoder has been exported."""
        return self._folder is not None and self._place(identity, quantized=False).is_dir()

    def path_of(self, encoder: Encoder, identity: str, quantized: bool = False) -> Path:
        """Return the file of an encoder's transformer, exported if it is not there or is damaged.

        Args:
            encoder: With float32 weights on the processor.
            identity: Of its weights: 64 hexadecimal digits.
            quantized: Weights of matrix products in int8, activations in int8 as they come.

        Raises:
            ValueError: If the encoder's transformer does not give token embeddings alone, or cannot be exported.
            OSError: If the folder cannot be written to.
        """
        place = self._place(identity, quantized)
        if not _is_sound(place):
            try:
                self._write(place, encoder, identity, quantized)
            except OSError:
                # Another process may have been faster, and what it wrote is as good.
                if not _is_sound(place):
                    raise
        return place / _MODEL_NAME

    def _write(self, place: Path, encoder: Encoder, identity: str, quantized: bool) -> None:
        with whole_folder(place, may_replace=lambda path: True) as draft:
            if quantized:
                _quantize(self.path_of(encoder, identity), draft / _MODEL_NAME)
            else:
                _export(encoder, draft / _MODEL_NAME)
            files = sorted(path for path in draft.iterdir() if path.is_file())
            (draft / CHECKSUMS_NAME).write_bytes(checksum_lines(draft, files).encode())

    def _place(self, identity: str, quantized: bool) -> Path:
        return self.folder / f"{identity[:32]}-{_FORMAT_VERSION}{'-int8' if quantized else ''}"

    def __reduce__(self) -> Any:
        """Let another process read what is in the folder; a temporary one is removed by the process that made it."""
        return _restored, (self._folder, self._is_temporary)


def _restored(folder: Path | None, is_temporary: bool) -> Exports:
    return Exports(None if is_temporary and folder is not None and not folder.is_dir() else folder)


def _is_sound(place: Path) -> bool:
    if not (place / CHECKSUMS_NAME).is_file():
        return False
    try:
        verify_checksums(place)
    except ModelFolderError:
        logger.warning("the exported encoder in %s is damaged; it is exported again", place)
        return False
    return True


def _export(encoder: Encoder, path: Path) -> None:
    import torch

    first: Any = encoder.model[0]
    if getattr(first, "module_output_name", "token_embeddings") != "token_embeddings":
        raise ValueError(f"expected a transformer that gives token embeddings to export, got one that pools: {first}")
    # Sizes other than 0 and 1, which the exporter would take for constants.
    ids, mask = torch.ones((2, 9), dtype=torch.int64), torch.ones((2, 9), dtype=torch.int64)
    mask[1, 5:] = 0
    any_size = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    inside = sum(weight.numel() * weight.element_size() for weight in first.parameters()) < _MOST_BYTES_INSIDE
    with _EXPORT_LOCK, _quiet(), torch.no_grad():
        try:
            torch.onnx.export(
                _token_embedder(first.auto_model),
                (ids, mask),
                path,
                input_names=list(INPUTS),
                output_names=["token_embeddings"],
                dynamic_shapes=(any_size, any_size),
                dynamo=True,
                external_data=not inside,
                verbose=False,
            )
        except Exception as error:  # the exporter's errors are of many kinds, and most are built on RuntimeError
            reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
            kind = type(first.auto_model).__name__
            raise ValueError(f"{kind} cannot be exported: {type(error).__name__}: {reason}") from error


def _token_embedder(transformer: Any) -> torch.nn.Module:
    """Wrap a transformer into a module of two inputs and one output."""
    import torch

    options = {"return_dict": True}
    if "use_cache" in inspect.signature(transformer.forward).parameters:
        # A decoder would hand its keys and values out, which nobody needs.
        options["use_cache"] = False

    class TokenEmbedder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.transformer = transformer

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            output = self.transformer(input_ids=input_ids, attention_mask=attention_mask, **options)
            embeddings: torch.Tensor = output.last_hidden_state
            return embeddings

    return TokenEmbedder().eval()


def _quantize(path: Path, target: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet():
        quantize_dynamic(
            path,
            target,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            # Seven bits: with eight, sums of products overflow on processors without VNNI. One file for all of them.
            reduce_range=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=path.with_name(path.name + ".data").exists(),
            extra_options={"MatMulConstBOnly": True},
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' notes on their own workings from the user."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "root")]
    levels = [one.level for one in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for one in loggers:
                one.setLevel(logging.ERROR)
            yield
        finally:
            for one, level in zip(loggers, levels, strict=True):
                one.setLevel(level)
