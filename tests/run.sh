#!/bin/sh
# `make test`: four stages, each only if the one before passed. pytest comes last, so that its count closes the output.
cd "$(dirname "$0")/.." || exit 1
[ -d .venv/bin ] && PATH="$PWD/.venv/bin:$PATH" && export PATH

ruff_agrees() { ruff format --check -q nbs tests && ruff check -q nbs tests; }

stage() {  # number, what must hold, what to do if it does not, the command
    echo "test $1/4  $2"
    number=$1 remedy=$3 started=$(date +%s)
    shift 3
    if ! "$@"; then
        echo "test $number/4  FAILED after $(($(date +%s) - started)) s: $remedy" >&2
        exit 1
    fi
    echo "          passed in $(($(date +%s) - started)) s"
}

one_thread() { OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 "$@"; }  # notebooks run side by side: more threads each would fight for the cores

side_by_side="-n ${MOLREC_JOBS:-auto} --dist loadfile"  # a file of tests stays with one worker: its fixtures are made once

if [ "${1:-}" = quick ]; then
    stage 1 "molrec/ is what the notebooks export"    "edit the notebook, not the module, then run nbdev_export"   python tests/sync.py export
    stage 2 "notebooks hold no stray metadata"        "run nbdev_clean"                                           python tests/sync.py clean
    stage 3 "ruff"                                    "run ruff format nbs tests, then ruff check nbs tests"        ruff_agrees
    echo "test 4/4  pytest, the quickest files"
    exec python -m pytest -q $side_by_side tests/test_project.py tests/test_links.py tests/metrics/test_list_metrics.py tests/cli/test_cli.py
fi

stage 1 "molrec/ is what the notebooks export"    "edit the notebook, not the module, then run nbdev_export"   python tests/sync.py export
stage 2 "notebooks hold no stray metadata"        "run nbdev_clean"                                           python tests/sync.py clean
stage 3 "the notebooks' lessons hold (nbdev_test)" "a lesson failed; its notebook and traceback are above"     one_thread nbdev_test --timing
echo "test 4/4  pytest"
exec python -m pytest -q $side_by_side tests
