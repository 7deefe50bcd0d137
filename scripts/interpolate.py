"""Encoders between stock and tuned (WiSE-FT): OHD-Caps accuracy against zero-shot accuracy, alpha by alpha.

Inputs:  two encoders of one geometry, OHD-Caps rows, a zero-shot set as in eval/zero_shot.py.
Outputs: OUT/curve.json (both accuracies with 95 % intervals), OUT/curve.svg; with --alpha A the encoder at A in
         OUT/encoder, with --name also registered, for --encoder NAME everywhere.
Command: python scripts/interpolate.py
         python scripts/interpolate.py --alpha 0.5 --name wise
Cost:    each alpha costs one pass of eval/ohd_caps.py and eval/zero_shot.py: a minute in all on the embedded world.

A sweep that was stopped goes on where it was. The paper's tuned CLIP loses 2.8 to 3.8 points of ImageNet and up to 8.8
of GTSRB, which the average it prints hides; this shows how much of that comes back, and for what.
Source:  Wortsman et al. 2022, arXiv 2109.01903.
"""

from typing import Any

from transformers import HfArgumentParser

from llava_ohd.clip.interpolation import InterpolationConfig, sweep
from llava_ohd.command_line import HelpFormatter
from llava_ohd.errors import exit_on_error
from llava_ohd.report.figures import tradeoff
from llava_ohd.training.launch import quiet


def _print(row: dict[str, Any]) -> None:
    cells = [f"{100 * row[k]['value']:6.1f} [{100 * row[k]['low']:5.1f}, {100 * row[k]['high']:5.1f}]" for k in _SHOWN]
    print(f"{row['alpha']:5.2f}   {'   '.join(cells)}   {100 * row['shuffled']:6.1f}", flush=True)


_SHOWN = ("ohd_caps", "zero_shot")


def main() -> None:
    """Runs the command."""
    parser = HfArgumentParser([InterpolationConfig], description=__doc__, formatter_class=HelpFormatter)  # type: ignore[list-item]
    [config] = parser.parse_args_into_dataclasses()
    quiet()
    with exit_on_error():
        print("alpha   OHD-Caps, %             zero-shot, %            shuffled, %")
        record = sweep(config, _print)
        tradeoff(record["rows"], config.out / "curve.svg")
        if config.alpha is not None:
            print(f"encoder: {config.out / 'encoder'}" + (f" ({config.name})" if config.name else ""))
        print(f"curve:   {config.out / 'curve.json'}, {config.out / 'curve.svg'}")


if __name__ == "__main__":
    main()
