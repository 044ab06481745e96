#!/bin/sh
# `make matrix`: the oldest versions that pyproject.toml allows, and the newest there are, each set in an environment of
# its own, and there the tests of data, metrics, records and the index. `make test` has the lock. A set may be named, as in
# `tests/matrix.sh oldest-3.11`. An environment takes up to 5 GB, since PyPI has torch for Linux with CUDA alone, and is
# kept in work/matrix or in the folder of MOLREC_MATRIX. Pythons are those on the path, and pyenv's.
cd "$(dirname "$0")/.." || exit 1
place=${MOLREC_MATRIX:-work/matrix} only=${1:-} failed=''
tests='tests/metrics tests/data tests/records tests/search/test_index.py tests/base/test_extras.py'

requirements() {  # oldest or newest, interpreter: one a line
    "$2" - "$1" <<'PYTHON'
import sys, tomllib
told = tomllib.load(open('pyproject.toml', 'rb'))['project']
for line in told['dependencies'] + told['optional-dependencies']['report']:
    print(line.replace('>=', '==') if sys.argv[1] == 'oldest' else line)
PYTHON
}

interpreter() {  # the Python of a version, if this machine has one
    for python in "python$1" "$HOME"/.pyenv/versions/"$1".*/bin/python; do
        "$python" -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$1')" 2>/dev/null && echo "$python" && return
    done
}

environment() {  # name, interpreter, oldest or newest
    [ -e "$place/$1/ready" ] && return
    "$2" -m venv --clear "$place/$1" && requirements "$3" "$2" > "$place/$1/wanted" \
        && "$place/$1/bin/pip" install -q -r "$place/$1/wanted" pytest hypothesis torchmetrics \
        && "$place/$1/bin/pip" check && "$place/$1/bin/pip" freeze > "$place/$1/ready"
}

tried() {  # oldest or newest, version of Python
    name=$1-$2
    [ -z "$only" ] || [ "$only" = "$name" ] || return
    python=$(interpreter "$2")
    if [ -z "$python" ]; then echo "matrix $name: skipped, this machine has no Python $2"; return; fi
    echo "matrix $name: $("$python" -V)"
    environment "$name" "$python" "$1" && PYTHONPATH=$PWD "$place/$name/bin/python" -m pytest -q $tests \
        || failed="$failed $name"
}

tried oldest 3.11
for version in 3.11 3.12 3.13 3.14; do tried newest $version; done
[ -z "$failed" ] || { echo "matrix: failed:$failed" >&2; exit 1; }
