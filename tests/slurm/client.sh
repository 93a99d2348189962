#!/bin/sh
# Stands before sbatch, squeue and sacct on PATH: fails once for each folder in $KDPIPE_FAULTS/NAME.
name=$(basename "$0")
for token in "$KDPIPE_FAULTS/$name"/*; do
  if rmdir "$token" 2> /dev/null; then
    echo "$name: error: Unable to contact slurm controller (connect failure)" >&2
    exit 1
  fi
done
exec "/usr/bin/$name" "$@"
