# Sourced by every finding: installs the packages of its line `# Needs:` into a temporary folder and works there.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
read -ra needs <<<"$(sed -n 's/^# Needs: //p' "$0")"
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install -qq --disable-pip-version-check "${needs[@]}"
export PATH="$work/venv/bin:$PATH"
mkdir "$work/run"
cd "$work/run"
echo "=== $(basename "$0" .sh): ${needs[*]}"
