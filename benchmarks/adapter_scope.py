"""What it costs that an exported adapter acts on the prompt too.

The same heads are amplified with the same strengths at all positions, as an adapter or a merged
checkpoint does (scope "all"), and only where the response is predicted, as prefheads does (scope
"response"). Reported: change of the mean response NLL against plain decoding, and the difference of
the two, paired, with 95 % intervals over users. Users that heads are discovered with are
left out.

    python -m benchmarks.adapter_scope --data LaMP_7 --out runs/adapter-scope
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path

import prefheads
from prefheads.calibration.calibrate import sweep
from prefheads.data.encoding import TruncationWarning
from prefheads.data.example import load_examples, split_users, spread
from prefheads.heads.scores import HeadWeights
from prefheads.stats import Estimate
from prefheads.steering.setting import PLAIN, Setting
from prefheads.storage import writable_dir, write_json

GAMMAS = (0.25, 0.5, 1.0, 2.0)


def main() -> None:
    """Measure, print a table, and keep the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument(
        "--out", type=Path, required=True, help="folder; a killed run goes on in it"
    )
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--heads", type=Path, help="file of heads; discovered if absent")
    parser.add_argument("--fraction", type=float, default=0.04, help="of the heads, by PCS")
    parser.add_argument("--found-with", choices=("response", "all"), default="response")
    parser.add_argument("--discovery", type=int, default=30, help="samples to discover with")
    parser.add_argument("--test", type=int, default=300, help="samples to test with")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    warnings.simplefilter("ignore", TruncationWarning)
    out = writable_dir(args.out)

    model, tokenizer = prefheads.load_model(args.model)
    for_heads, for_test = split_users(load_examples(args.data), (0.2, 0.8), args.seed)
    if args.heads is None:
        scores = prefheads.discover(
            model,
            tokenizer,
            spread(for_heads, args.discovery, args.seed),
            scope=args.found_with,
            checkpoint=out / "discovery.jsonl",
            seed=args.seed,
        )
        heads = scores.soft(fraction=args.fraction)
        heads.save(out / "heads.safetensors")
    else:
        heads = HeadWeights.load(args.heads, model)
    test = spread(for_test, args.test, args.seed)
    users = [e.user_id for e in test]
    settings = [PLAIN, *(Setting("heads", "amplify", "head", g) for g in GAMMAS)]
    nll = {}
    for scope in ("response", "all"):
        values, _ = sweep(
            model,
            tokenizer,
            [test],
            {"heads": heads.values},
            settings,
            scope=scope,
            checkpoint=out / f"{scope}.jsonl",
            label=scope,
        )
        nll[scope] = values[:, 0, :, 0]

    plain = nll["response"][:, 0]
    print(
        f"{args.data.name}: {len(test)} samples of {len(set(users))} users, {heads.n_active} heads "
        f"found with scope {heads.info.scope}, plain NLL {plain.mean():.3f} nats a token"
    )
    print(f"{'gamma':>6}  {'response':^24}  {'all':^24}  {'all - response':^24}")
    rows = []
    for i, gamma in enumerate(GAMMAS, 1):
        change = {scope: values[:, i] - values[:, 0] for scope, values in nll.items()}
        change["difference"] = change["all"] - change["response"]
        found = {name: Estimate.of(x, users) for name, x in change.items()}
        print(f"{gamma:>6g}  " + "  ".join(f"{e!s:^24}" for e in found.values()))
        rows.append({"gamma": gamma} | {name: vars(e) for name, e in found.items()})
    options = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
    result = {"options": options, "heads": heads.heads, "plain": plain.mean(), "rows": rows}
    write_json(out / "adapter_scope.json", result)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
