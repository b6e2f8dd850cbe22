#!/usr/bin/env bash
# mypy takes neither py.typed nor a stub beside an installed module for its types.
#
# Package: mypy 1.18.2.
# Guess: a distribution of one annotated module is typed by a py.typed beside the module in site-packages,
#   or else by a stub beside it, as a stub in the folder of one's own modules is found.
# What happens: with either of them mypy says that the module is installed but has no types, and each of
#   its names is Any. What works is a folder MODULE-stubs: PEP 561 speaks of packages only.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check mypy==1.18.2 2>/dev/null
cd "$work"
site=$(venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
declaration='def half(number: int) -> float:'
printf '%s\n    return number / 2\n' "$declaration" > "$site/halves.py"
printf 'from halves import half\nreveal_type(half(1))\n' > use.py
revealed() {
    { venv/bin/mypy --no-incremental use.py || true; } | sed -n 's/.*Revealed type is //p'
}
alone=$(revealed)
touch "$site/py.typed"
with_marker=$(revealed)
echo "$declaration ..." > "$site/halves.pyi"
with_stub=$(revealed)
mkdir "$site/halves-stubs"
mv "$site/halves.pyi" "$site/halves-stubs/__init__.pyi"
with_folder=$(revealed)
echo "the module alone: $alone"
echo "with py.typed beside it: $with_marker"
echo "and with a stub beside it: $with_stub"
echo "with a folder of stubs: $with_folder"
[ "$alone" = '"Any"' ]
[ "$with_marker" = '"Any"' ]
[ "$with_stub" = '"Any"' ]
[ "$with_folder" = '"builtins.float"' ]
# Seen:
#   the module alone: "Any"
#   with py.typed beside it: "Any"
#   and with a stub beside it: "Any"
#   with a folder of stubs: "builtins.float"
