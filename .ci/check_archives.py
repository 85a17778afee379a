"""Check what the wheel and the sdist hold: python .ci/check_archives.py DIST."""

from __future__ import annotations

import sys
import tarfile
import zipfile
from pathlib import Path

MAX_MEGABYTES = 90
TEMPLATES = Path(__file__).parents[1] / "qrag_retriever/hops/templates"


def main(folder: Path) -> None:
    """Exit with a message if an archive is not as it should be."""
    (wheel,) = folder.glob("*.whl")
    (sdist,) = folder.glob("*.tar.gz")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    expected = {"qrag_retriever", next(top for top in tops if top.endswith(".dist-info"))}
    if tops != expected or "qrag_retriever/py.typed" not in names:
        sys.exit(f"the wheel holds {sorted(tops)}; expected {sorted(expected)} with py.typed")
    encoder = ("encoder/modules.json", "encoder/tokenizer.json")
    files = ("model.safetensors", "qrag_config.json", "README.md", "SHA256SUMS", *encoder)
    model = {f"qrag_retriever/bundled/{name}" for name in files}
    templates = {f"qrag_retriever/hops/templates/{path.name}" for path in TEMPLATES.iterdir()}
    if missing := (model | templates) - set(names):
        sys.exit(f"the wheel lacks {sorted(missing)}")
    with tarfile.open(sdist) as archive:
        members = [member.name.partition("/")[2] for member in archive]
    if missing := (model | templates | {"LICENSE"}) - set(members):
        sys.exit(f"the sdist lacks {sorted(missing)}")
    for path in (wheel, sdist):
        if path.stat().st_size > MAX_MEGABYTES * 2**20:
            sys.exit(f"{path.name} has {path.stat().st_size} bytes, more than {MAX_MEGABYTES} MiB")
        sys.stdout.write(f"{path.name}: {path.stat().st_size / 2**20:.2f} MiB\n")


main(Path(sys.argv[1]))
