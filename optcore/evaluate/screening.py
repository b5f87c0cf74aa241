"""KL to the source of each window of held-out text by itself, so that candidates can be compared window by window."""

from hashlib import sha256
from typing import TYPE_CHECKING

from optcore.calibration.text import Texts
from optcore.evaluate.divergence import Divergence, divergence
from optcore.evaluate.positions import only, parts
from optcore.evaluate.side_by_side import SideBySide

if TYPE_CHECKING:
    from optcore.run import Run


def screen(run: "Run", samples: int, sequence_length: int) -> None:
    """Leave the mean KL(source || checkpoint) of each window, nats a token, and a digest of the windows' tokens."""
    models = SideBySide(run, has_baseline=False)
    texts = Texts(run.source, run.calibration, run.data_files)
    tokens_ST = texts.evaluation_windows(samples, sequence_length, models.longest_sequence)
    models.walk([tokens_ST])
    shift = int(models.source.is_causal)  # an encoder predicts the token at its own place
    found = []
    for place, states in models.batches():
        tokens_BT = tokens_ST[place.rows].to(models.source.device)
        sums = [Divergence()] * len(tokens_BT)
        for part in parts(len(tokens_BT), range(tokens_ST.shape[1] - shift)):
            next_BP = tokens_BT[:, part.start + shift : part.stop + shift]
            source, own = (models.logits(name, only(states[name], part)) for name in ("source", "result"))
            for row in range(len(tokens_BT)):
                one = slice(row, row + 1)
                sums[row] = sums[row].plus(divergence(source[one], own[one], next_BP[one]))
        found += [each.mean_kl for each in sums]
    run.results.update(kl_windows=found, windows_digest=sha256(tokens_ST.numpy().tobytes()).hexdigest())
    run.metric("screened_kl", sum(found) / len(found))
