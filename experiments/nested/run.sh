#!/bin/sh
# Train three methods at 16, 32 and 64 bits, alone and nested, with three seeds: sh run.sh <folder of runs>
# Started again, it trains only what is missing. More settings may follow the folder.
set -e
runs=$1
shift
for seed in 1 2 3; do
    common="seed=$seed logger=none gallery=false runs=$runs"
    deephash train -m 'method=dpsh,dsdh,dtsh' bits=64 'nested=[16,32]' $common "$@"
    deephash train -m 'method=dpsh,dsdh,dtsh' bits=16,32,64 $common "$@"
done
python "$(dirname "$0")/table.py" "$runs"
