"""Downstream tasks with our adapter and with the `hf` model of lm-evaluation-harness, on the same task objects.

    python benchmarks/task_parity.py CHECKPOINT arc_easy=arc_easy.jsonl piqa=piqa.jsonl --limit 200

Prints for each task both accuracies, the largest difference of two log-likelihoods, the processor seconds of each for
tokenizing and scoring, and their ratio. Processor time is used because other load affects it less than wall time; run
with OMP_NUM_THREADS=1, so that no thread waits in a busy loop. Exits with 1 if an accuracy differs, or if another
metric (bits per byte, margin), which is a mean of log-likelihoods, differs by more than 1e-4.
Needs: pip install 'slm[eval]' transformers accelerate
"""

import argparse
import sys
import time
from typing import Any

import torch


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="folder that transformers and slm.checkpoints.load both read")
    parser.add_argument("files", nargs="+", metavar="TASK=FILE", help="task files (docs/tasks.md)")
    parser.add_argument("--limit", type=int, default=200, help="questions of each task")
    parser.add_argument("--batch-tokens", type=int, default=4096, help="padded tokens in a batch of ours")
    parser.add_argument("--hf-batch-size", type=int, default=16, help="requests in a batch of the hf model")
    arguments = parser.parse_args()

    from lm_eval.models.huggingface import HFLM

    from slm.checkpoints import load
    from slm.evaluation.tasks.adapter import DecoderLM

    checkpoint = load(arguments.checkpoint)
    ours = DecoderLM(checkpoint.decoder, checkpoint.tokenizer, batch_tokens=arguments.batch_tokens)
    theirs = HFLM(
        arguments.checkpoint,
        device="cpu",
        dtype="float32",
        batch_size=arguments.hf_batch_size,
        max_length=ours.max_length,
    )
    print(f"{torch.get_num_threads()} threads, float32, {arguments.limit} questions a task")
    print(f"{'task':14} {'metric':9} {'ours':>7} {'hf':>7} {'max |d ll|':>11} {'ours s':>7} {'hf s':>7} {'ratio':>6}")
    same = True
    for entry in arguments.files:
        name, path = entry.split("=", 1)
        same &= compare(name, path, ours, theirs, arguments.limit)
    return 0 if same else 1


def compare(name: str, path: str, ours: Any, theirs: Any, limit: int) -> bool:
    from slm.evaluation.tasks.run import evaluate_task, load_task, quiet

    results, likelihoods, seconds = [], [], []
    for model in (ours, theirs):
        with quiet():
            loaded = load_task(name, path)
            timed = Timed(model)
            results.append(evaluate_task(timed, loaded, limit=limit, num_fewshot=0, seed=0)[0][name])
        instances = loaded["tasks"][name].instances
        likelihoods.append(torch.tensor([instance.resps[0][0] for instance in instances], dtype=torch.float64))
        seconds.append(timed.seconds)
    worst = float((likelihoods[0] - likelihoods[1]).abs().max())
    values = [
        {result["metric"]: result["value"]} | {k: v["value"] for k, v in result["also"].items()} for result in results
    ]
    for metric, value in values[0].items():
        print(
            f"{name:14} {metric:9} {value:7.4f} {values[1][metric]:7.4f} {worst:11.2e} "
            f"{seconds[0]:7.2f} {seconds[1]:7.2f} {seconds[1] / seconds[0]:6.2f}",
            flush=True,
        )
    # Accuracies count questions and must be equal; the others carry the rounding of two implementations.
    tolerance = {metric: 0.0 if metric.startswith("acc") else 1e-4 for metric in values[0]}
    return all(abs(values[0][metric] - values[1][metric]) <= tolerance[metric] for metric in tolerance)


class Timed:
    """A harness model whose scoring is timed; everything else is passed through."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.seconds = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def loglikelihood(self, requests: list[Any]) -> Any:
        start = time.process_time()
        scores = self.model.loglikelihood(requests)
        self.seconds = time.process_time() - start
        return scores


if __name__ == "__main__":
    sys.exit(main())
