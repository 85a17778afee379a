"""Check what the wheel and the sdist hold: python .ci/check_archives.py DIST."""

from __future__ import annotations

import sys
import tarfile
import zipfile
from pathlib import Path

MAX_MEGABYTES = 90
# What the sdist is made of: the package, its tests, and what builds it. No data, no documentation, no recipes.
SDIST = {
    "qrag_retriever", "qrag_retriever.egg-info", "tests",
    "LICENSE", "PKG-INFO", "README.md", "pyproject.toml", "setup.cfg",
}  # fmt: skip
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
    if unexpected := {member.partition("/")[0] for member in members if member} - SDIST:
        sys.exit(f"the sdist holds {sorted(unexpected)}; expected no more than {sorted(SDIST)}")
    for path in (wheel, sdist):
        megabytes = path.stat().st_size / 10**6
        if megabytes >= MAX_MEGABYTES:
            sys.exit(f"{path.name} has {megabytes:.2f} MB; expected less than {MAX_MEGABYTES}")
        sys.stdout.write(f"{path.name}: {megabytes:.2f} MB\n")


main(Path(sys.argv[1]))
