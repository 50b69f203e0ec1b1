"""Whether a classifier is as often right as it says.

Letters: N examples, L labels, K bins.
"""

import numpy as np

BINS = 15  # as in Guo et al. 2017, arXiv 1706.04599


def bins_of(confidence: np.ndarray) -> np.ndarray:
    """The number of the bin (k/K, (k+1)/K] that each confidence lies in."""
    return np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)


def decisions(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Confidence and whether it was right, of each decision made: (N, 1), or (N, L) where examples have several labels.

    Of one label the decision is the likeliest one; of several, each label's yes or no.
    """
    if labels.ndim == 2:
        return np.maximum(probabilities, 1 - probabilities), (probabilities > 0.5) == labels.astype(bool)
    return probabilities.max(1)[:, None], (probabilities.argmax(1) == labels)[:, None]


def gaps(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """(N, K) what each example adds to the sum of (right - confidence) in each bin.

    The expected calibration error is the sum over bins of the absolute column sums, over the number of decisions.
    """
    confidence, right = decisions(labels, probabilities)
    table = np.zeros((len(labels), BINS))
    rows = np.broadcast_to(np.arange(len(labels))[:, None], confidence.shape)
    np.add.at(table, (rows, bins_of(confidence)), right - confidence)
    return table / confidence.shape[1]


def brier(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """(N,) squared error of the probabilities, summed over classes (Brier 1950): 0 to 2.

    Where examples have several labels, the mean over labels of each one's own: 0 to 1.
    """
    if labels.ndim == 2:
        return ((probabilities - labels) ** 2).mean(1)
    return (probabilities**2).sum(1) + 1 - 2 * probabilities[np.arange(len(labels)), labels]


def reliability(labels: np.ndarray, probabilities: np.ndarray) -> list[dict[str, float]]:
    """Each bin that is met: decisions in it, mean confidence, share that was right."""
    confidence, right = (part.ravel() for part in decisions(labels, probabilities))
    number = bins_of(confidence)
    counts, sure, hits = (np.bincount(number, w, BINS) for w in (None, confidence, right.astype(float)))
    return [
        {"count": int(counts[k]), "confidence": float(sure[k] / counts[k]), "accuracy": float(hits[k] / counts[k])}
        for k in np.flatnonzero(counts)
    ]
