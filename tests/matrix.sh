#!/bin/sh
# `make matrix`: the oldest and the newest versions that pyproject.toml allows, each in an environment of its own under
# work/matrix, and there the tests of data, metrics, records, the index and the kernels' torch paths. The lock of
# requirements.txt has `make test`. One set may be named: tests/matrix.sh oldest-3.11
# An environment takes up to 5 GB, since PyPI has torch for Linux with CUDA alone; MOLREC_MATRIX names another folder for them.
cd "$(dirname "$0")/.." || exit 1
place=${MOLREC_MATRIX:-work/matrix}
oldest='torch==2.6.0 numpy==1.26.0 pandas==2.2.0 scipy==1.11.1 pyarrow==15.0.0 safetensors==0.4.3 PyYAML==6.0.1
 pooch==1.8.0 filelock==3.12.0 tqdm==4.65.0'
newest='torch numpy pandas scipy pyarrow safetensors PyYAML pooch filelock tqdm'
tests='tests/data tests/metrics tests/records tests/search/test_index.py tests/base/test_extras.py'
failed=''

interpreter() {  # the newest Python of a version on this machine: on the path, or pyenv's
    for python in "python$1" $(ls -d "$HOME"/.pyenv/versions/"$1".*/bin/python 2>/dev/null); do
        "$python" -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$1')" 2>/dev/null && echo "$python" && return
    done
}

environment() {  # name, interpreter, requirements
    [ -e "$place/$1/.ready" ] && return
    "$2" -m venv --clear "$place/$1" && "$place/$1/bin/pip" install -q $3 pytest hypothesis nbformat \
        && "$place/$1/bin/pip" freeze > "$place/$1/.ready"
}

tried() {  # oldest or newest, version of Python
    name=$1-$2
    [ -z "$only" ] || [ "$only" = "$name" ] || return
    python=$(interpreter "$2")
    if [ -z "$python" ]; then echo "matrix $name: skipped, no Python $2 on this machine"; return; fi
    eval "wanted=\$$1"
    echo "matrix $name: $("$python" -V), $(echo $wanted)"
    if environment "$name" "$python" "$wanted" && PYTHONPATH=$PWD "$place/$name/bin/python" -m pytest -q $tests; then
        echo "matrix $name: passed"
    else
        failed="$failed $name"
    fi
}

only=${1:-}
tried oldest 3.11
for version in 3.11 3.12 3.13 3.14; do tried newest $version; done
[ -z "$failed" ] || { echo "matrix: failed:$failed" >&2; exit 1; }
