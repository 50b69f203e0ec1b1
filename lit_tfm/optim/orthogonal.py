"""The nearest (semi-)orthogonal matrix, many at once, by matrix products alone (Newton-Schulz).

Shapes: N matrices, R rows, C columns, m = min(R, C).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lit_tfm.nn.products import by_onednn, products

Coefficients = Sequence[tuple[float, float, float]]

# One triple (a, b, c) a step: X <- a X + b (X X^T) X + c (X X^T)^2 X maps each singular value to a x + b x^3 + c x^5.
COEFFICIENTS: dict[str, Coefficients] = {
    # Keller Jordan 2024, https://kellerjordan.github.io/posts/muon: steepest at 0, ends in [0.7, 1.2], not at 1.
    "jordan": ((3.4445, -4.7750, 2.0315),) * 5,
    # Amsel et al. 2025, "The Polar Express", https://arxiv.org/abs/2505.16932: the minimax polynomial of each step, for
    # singular values down to 1e-3, with the safety factor 1.02 of the paper's code folded in. Ends nearer to 1.
    "polar_express": (
        (8.156554524902461, -22.48329292557795, 15.878769915207462),
        (4.042929935166739, -2.808917465908714, 0.5000178451051316),
        (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
        (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
        (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
    ),
}


def orthogonalize(x: Tensor, coefficients: Coefficients) -> Tensor:
    """x (N, R, C) -> U V^T of each matrix's singular value decomposition U S V^T, about. A zero matrix stays zero.

    Works in x's dtype. Long or wide matrices in fp32 are iterated on their m x m Gram matrix: half the products, and
    equal to 1e-5. In bf16 the squared small singular values would be lost, so there the matrix itself is iterated.
    """
    rows, columns = x.shape[-2:]
    if x.dtype == torch.float32 and max(rows, columns) >= 2 * min(rows, columns):
        return _by_gram(x, coefficients)
    return _direct(x.mT, coefficients).mT if rows > columns else _direct(x, coefficients)


def _direct(x: Tensor, coefficients: Coefficients) -> Tensor:
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)  # Frobenius: all singular values are 1 at most
    for triple in coefficients:
        x = products(_factor(products(x, x.mT), triple), x)
    return x


def _by_gram(x: Tensor, coefficients: Coefficients) -> Tensor:
    """The polynomials of one Gram matrix commute, so their product can be found first and be applied to x once."""
    tall = x.shape[-2] > x.shape[-1]
    gram = products(x.mT, x) if tall else products(x, x.mT)  # (N, m, m)
    square = gram.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None].clamp_min(1e-14)  # trace = squared Frobenius norm
    gram.div_(square)
    product = factor = _factor(gram, coefficients[0])
    for triple in coefficients[1:]:
        gram = products(products(factor, gram), factor)
        factor = _factor(gram, triple)
        product = products(product, factor)
    product = product / square.sqrt()
    return products(x, product) if tall else products(product, x)


def _factor(gram: Tensor, triple: tuple[float, float, float]) -> Tensor:
    """a I + b G + c G^2, what one step multiplies the matrix by. (N, m, m)

    The identity goes in here, not by baddbmm at the product with x: that would copy all of x first.
    """
    a, b, c = triple
    if by_onednn(gram[0].numel() * gram.size(-1), gram, gram):
        factor = products(gram, gram).mul_(c).add_(gram, alpha=b)
    else:
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
    factor.diagonal(dim1=-2, dim2=-1).add_(a)
    return factor
