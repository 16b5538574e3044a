#!/usr/bin/env bash
# Run findings one after the other: findings/run_all.sh [NAME...]
set -euo pipefail
cd "$(dirname "$0")"

names=("$@")
if ((${#names[@]} == 0)); then
  for file in $(grep -l '^# Needs: ' ./*.sh); do names+=("$(basename "$file" .sh)"); done
fi

changed=()
for name in "${names[@]}"; do
  bash "$name.sh" || changed+=("$name")
done

echo
if ((${#changed[@]})); then
  echo "changed: ${changed[*]}"
  exit 1
fi
echo "as described: ${names[*]}"
