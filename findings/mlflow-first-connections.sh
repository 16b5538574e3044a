#!/usr/bin/env bash
# MLflow 3.17: processes that first connect to one SQLite database at the same moment create its tables twice, and fail.
# Expected: one creates the tables and the others wait, because SQLite is a documented backend for several processes.
# Effect: of several trainings that start on a fresh machine, most die with an OperationalError. `registry/client.py`
#   holds a file's lock while it connects.
# Needs: mlflow-skinny==3.17.2 SQLAlchemy==2.1.9 alembic==1.20.1 sqlparse==0.6.1
# Seen: "4 processes at once: 3 failed", then "4 processes one after the other: 0 failed"
set -euo pipefail
source "$(dirname "$0")/environment.sh"

cat >race.py <<'PY'
import multiprocessing, os, sys

def connect(barrier, path):
    import mlflow, sqlalchemy, alembic.command  # before the race
    barrier.wait()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()

if __name__ == "__main__":
    context, failed = multiprocessing.get_context("spawn"), 0
    together = int(sys.argv[1])
    for start in range(0, 4, together):
        barrier = context.Barrier(together)
        group = [context.Process(target=connect, args=(barrier, sys.argv[2])) for _ in range(together)]
        for process in group: process.start()
        for process in group: process.join()
        failed += sum(process.exitcode != 0 for process in group)
    print("4 processes", "at once:" if together > 1 else "one after the other:", failed, "failed")
    sys.exit(failed > 0)
PY

for attempt in 1 2 3 4 5; do  # chance decides
  if ! python race.py 4 "$PWD/$attempt.db"; then
    python race.py 1 "$PWD/ordered.db"
    exit
  fi
done
exit 1
