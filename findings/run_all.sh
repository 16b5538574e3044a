#!/usr/bin/env bash
# Run findings, each in an environment of its own with the packages that it pins: findings/run_all.sh [NAME...]
set -euo pipefail
cd "$(dirname "$0")"

python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

names=("$@")
if ((${#names[@]} == 0)); then
  for file in *.sh; do [[ $file == run_all.sh ]] || names+=("${file%.sh}"); done
fi

changed=()
for name in "${names[@]}"; do
  read -ra needs <<<"$(sed -n 's/^# Needs: //p' "$name.sh")"
  ((${#needs[@]})) || { echo "$name: has no line '# Needs: PACKAGE==VERSION'"; exit 2; }
  "$python" -m venv "$work/$name"
  "$work/$name/bin/pip" install -qq --disable-pip-version-check "${needs[@]}"
  mkdir "$work/$name/run"
  echo "=== $name (${needs[*]})"
  script=$PWD/$name.sh
  (cd "$work/$name/run" && PATH="$work/$name/bin:$PATH" bash "$script") || changed+=("$name")
  rm -rf "${work:?}/$name"
done

echo
if ((${#changed[@]})); then
  echo "changed: ${changed[*]}"
  exit 1
fi
echo "as described: ${names[*]}"
