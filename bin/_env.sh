# Sourced by the scripts beside it, with $root set: makes $root/.venv on first use and keeps it current.
# The interpreter is $MESH_PYTHON, else the first of python3, python3.14 ... python3.11 that is new enough, or one that
# is clearly faster here and no older (bin/_pick.py).

fail() {
    printf 'mesh: %s\n' "$1" >&2
    [ -z "${2:-}" ] || printf 'hint: %s\n' "$2" >&2
    exit 1
}

# A version manager's shim may exist for an interpreter that does not, so each one is asked.
find_python() {
    for candidate in ${MESH_PYTHON:+"$MESH_PYTHON"} python3 python3.14 python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            printf '%s\n' "$candidate"
            return 0
        fi
    done
    return 1
}

# Only a build machine (CI=true, root) is changed; a person is told what to type.
install_or_tell() {
    if [ "${CI:-}" = true ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y "$@"; } >/dev/null 2>&1 && return 0
    fi
    return 1
}

make_venv() {
    python=$(find_python) || { install_or_tell python3 python3-venv && python=$(find_python); } ||
        fail "needs Python 3.11 or newer, and found none" "install one (Debian, Ubuntu: apt install python3 python3-venv; macOS: brew install python), or name it: MESH_PYTHON=/path/to/python3"
    if [ -z "${MESH_PYTHON:-}" ]; then
        python=$("$python" "$root/bin/_pick.py" "$python" python3.14 python3.13 python3.12 python3.11 \
            /usr/local/bin/python3 /opt/homebrew/bin/python3 /usr/bin/python3 || printf '%s\n' "$python")
    fi
    "$python" -c 'import ensurepip, venv' 2>/dev/null || install_or_tell python3-venv ||
        fail "$python cannot make virtual environments (its venv or ensurepip module is missing)" "apt install $("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"
    "$python" -m venv --clear "$root/.venv" >&2 || fail "cannot make $root/.venv" "the checkout must be writable, with about 200 MB free"
}

# $1: extras, comma separated, or nothing. Runs under the lock.
prepare() {
    is_current "$1" && return 0
    printf 'mesh: preparing %s%s (once, about a minute) ...\n' "$root/.venv" "${1:+ for $1}" >&2
    "$root/.venv/bin/python" -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || make_venv
    target=$root
    [ -z "$1" ] || target="$root[$1]"
    "$root/.venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-warn-script-location \
        -e "$target" >"$root/.venv/pip.log" 2>&1 || {
        cat "$root/.venv/pip.log" >&2
        fail "pip could not install mesh and what it needs" "the lines above say why; a package index must be reachable"
    }
    stamp_text >"$root/.venv/.installed-$1"
}

# A moved checkout or a changed pyproject.toml makes the stamp differ; an interpreter may be removed.
stamp_text() {
    printf '%s\n' "$root"
    cat "$root/pyproject.toml"
}

is_current() {
    [ -x "$root/.venv/bin/python" ] && stamp_text | cmp -s - "$root/.venv/.installed-$1"
}

# The lock is held by a subshell alone, so that nothing started later inherits it. pyproject.toml itself is
# locked: no file is left behind. Without flock (macOS) a folder serves, given up after two minutes.
ensure_env() {
    is_current "$1" && return 0
    if command -v flock >/dev/null 2>&1; then
        (
            flock 9
            prepare "$1" 9<&-
        ) 9<"$root/pyproject.toml" || exit 1
        return 0
    fi
    waited=0
    until mkdir "$root/.venv.lock" 2>/dev/null; do
        [ "$waited" -lt 120 ] || fail "$root/.venv.lock is held by somebody" "if no other mesh is starting: rmdir $root/.venv.lock"
        sleep 1
        waited=$((waited + 1))
    done
    (
        trap 'rmdir "$root/.venv.lock"' EXIT
        prepare "$1"
    ) || exit 1
}
