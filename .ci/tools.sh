# Read by other scripts: tools of Rust's that Python's registry has as they are built, fixed by their hashes in
# .ci/requirements. Where it has none for this machine, they are compiled.

# tool NAME PROGRAM: has PROGRAM in the path.
tool() {
    tools=$(realpath -m "${CARGO_TARGET_DIR:-target}")/tools
    [ -x "$tools/$1/bin/$2" ] || {
        python3 -m venv "$tools/$1" && "$tools/$1/bin/pip" install --quiet --disable-pip-version-check \
            --require-hashes --only-binary :all: -r ".ci/requirements/$1.txt" 2>"$tools/$1.log" ||
            cargo install --quiet --locked --root "$tools/$1" \
                "$2@$(sed -n 's/^astral-dev-toolchain-.*==\([0-9.]*\).*/\1/p' ".ci/requirements/$1.txt")"
    } || return 1
    PATH="$tools/$1/bin:$PATH"
    export PATH
}
