#!/usr/bin/env bash
# soundfile 0.14 (libsndfile): of an MP3 file of variable bit rate without a header `Xing`, it reads as much as the first
#   bit rate suggests, and no more.
# Expected: a file is read to its end, as ffmpeg and mpg123 do, or an error.
# Effect: a clip loses its end in silence, in training and in requests. Frames are counted, and such a file gets a header
#   (`maas_ray/tasks/speech/containers.py`).
# Needs: soundfile==0.14.0 numpy==2.4.6
# Seen: 6 seconds written; without the first frame, which is the header, 1.26 seconds are read
set -euo pipefail
source "$(dirname "$0")/environment.sh"

python - <<'PY'
import io, sys

import numpy, soundfile

RATE, SECONDS = 16_000, 6
noise = 0.3 * numpy.random.default_rng(0).normal(size=2 * RATE).clip(-1, 1)
written = io.BytesIO()
with soundfile.SoundFile(written, "w", RATE, 1, format="MP3", bitrate_mode="VARIABLE", compression_level=0.9) as file:
    file.write(numpy.concatenate([noise, numpy.zeros((SECONDS - 2) * RATE)]))
content = written.getvalue()
without = content[content.index(content[:2], content.index(b"Xing")) :]
read = {}
for name, data in (("whole", content), ("without Xing", without)):
    samples, rate = soundfile.read(io.BytesIO(data))
    read[name] = len(samples) / rate
    print(f"{name}: {read[name]:.2f} s")
sys.exit(not (read["whole"] == SECONDS and read["without Xing"] < SECONDS / 2))
PY
