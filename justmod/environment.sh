# Shared by ./justw and justmod/python, which source it with $root set to the checkout's real path and the checkout as
# their working directory. `ensure` returns at once when .venv is ready for this checkout; it starts no process then,
# since every client that a benchmark starts comes through here.

# .venv/ready holds the checkout's path and the interpreter asked for; its time is that of the setup.py it was made from.
ready() {
    [ -x .venv/bin/python ] && [ -x .venv/bin/just ] && [ -f .venv/ready ] || return 1
    [ setup.py -nt .venv/ready ] && return 1
    [ setup.py -ot .venv/ready ] && return 1
    { IFS= read -r made_for && IFS= read -r made_with; } <.venv/ready || return 1
    [ "$made_for" = "$root" ] || return 1
    [ -z "${MADKV_PYTHON-}" ] || [ "$MADKV_PYTHON" = "$made_with" ]
}

# The first interpreter that can run bootstrap.py, which then chooses the one to use.
ensure() {
    ready && return
    for candidate in ${MADKV_PYTHON:+"$MADKV_PYTHON"} python3 python3.13 python3.12 python3.11 \
        "${PYENV_ROOT:-$HOME/.pyenv}"/versions/*/bin/python3; do
        if "$candidate" -c 'import fcntl, sys; sys.exit(sys.version_info < (3, 11))' </dev/null >/dev/null 2>&1; then
            "$candidate" -I justmod/bootstrap.py </dev/null >&2 || exit 1
            return
        fi
    done
    echo "madkv: no Python 3.11 or newer found; install one, or name one in MADKV_PYTHON" >&2
    exit 1
}
