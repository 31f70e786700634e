#!/usr/bin/env bash
# Every script of this folder at its smallest setting, so that none is dead for days: benchmarks/smallest.sh [NAME ...]
# A script that has no line below is run with --smallest. Needs the [test] extra and no network.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# Compiling would take most of the time; the tests compile.
export WANDB_MODE=offline HF_HUB_OFFLINE=1 SLM_CACHE=$work/cache TORCHDYNAMO_DISABLE=1

declare -A smallest=(
    [accuracy_study]="--replications 1 --only 'logistic_power, 6' --keep $work/accuracy"
    [all]="--quick --only refusals --out $work/performance.md"
    [analysis_speed]="analysis=quick analysis.laws=[power] analysis.calibration=0 logger=csv"
    [cold_start]="--repetitions 1 --only uncompiled job = --overrides data=local data.paths=$work/text.txt"
    [coord_check]="--widths 64 128 --depths 2 4 --steps 1 --seeds 1 --out $work/coord_check"
    [corpus_build]="--megabytes 1 12 --processes 2 --kill && python benchmarks/corpus_build.py --megabytes 1 --encode-batch 1"
    [cpu_choices]="smallest"
    [decode_throughput]="--layers 1 --prompt-tokens 8 --new-tokens 4 --rounds 1"
    [device_check]="--smallest --only machine step_125m loss_by_chunk decoding mixers"
    [fuzz]="--count 5"
    [mixer_throughput]="G --lengths 64 --tokens 64 --repetitions 1"
    [optimizer_share]="1"
    [perplexity_parity]="$work/run/model $work/text.txt --tokens 128 --max-length 64 --stride 32"
    [simulation_study]="--replications 1 --only '3 sizes' --keep $work/study"
    [sweep_slots]="1 sweep.families=[ssd] sweep.grid.sizes=[2e5] sweep.budget.tokens=4096 \"sweep.also=['data=local','data.paths=$work/text.txt']\""
    [task_parity]="$work/run/model arc_easy=$work/arc_easy.jsonl --limit 2"
    [time_to_loss]="--seeds 1 --rates 1e-3 --overrides data=local data.paths=$work/text.txt model.num_layers=1 train.tokens=8192 train.sample_tokens=0"
    [train_throughput]="tiny:64:1 --repetitions 1 --peers transformers && python benchmarks/train_throughput.py tiny:64:1 --sharing --repetitions 1 && python benchmarks/train_throughput.py tiny:64:1 --memory && python benchmarks/train_throughput.py tiny:64:1 --profile"
)

# A text, a task and a model of our own for those that ask for one.
python - "$work" <<'PYTHON'
import json, random, sys
from pathlib import Path

work, rng = Path(sys.argv[1]), random.Random(0)
words = "river stone lamp quiet harbour winter seven copper bread letter".split()
(work / "text.txt").write_text("\n\n".join(" ".join(rng.choices(words, k=60)) + "." for _ in range(300)))
questions = [{"query": f"Question: {word}?\nAnswer:", "choices": words[:4], "gold": i} for i, word in enumerate(words[:4])]
(work / "arc_easy.jsonl").write_text("".join(json.dumps(one) + "\n" for one in questions))
PYTHON
python train.py data=local data.paths="$work/text.txt" model.num_layers=1 train.tokens=8192 train.sample_tokens=0 \
    trainer=cpu trainer.compile=false logger=csv output_dir="$work/run" >"$work/train.log" || { cat "$work/train.log"; exit 1; }

names=("$@")
[ $# -gt 0 ] || for script in benchmarks/*.py; do names+=("$(basename "$script" .py)"); done
for name in "${names[@]}"; do
    started=$SECONDS
    echo "\$ python benchmarks/$name.py ${smallest[$name]:---smallest}"
    bash -c "python benchmarks/$name.py ${smallest[$name]:---smallest}" >"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
    tail -1 "$work/log"
    echo "  $((SECONDS - started)) s"
done
