"""How weights start, all of it in one function.

Two families:
- `std` a number: every matrix and table N(0, std), as BERT and GPT-2 (0.02). `depth_scaled` divides the residual
  projections by sqrt(their number) (Radford et al. 2019, section 2.3).
- `std` None: a matrix has variance 1 / fan_in (LeCun et al. 1998), which keeps the variance of what flows through;
  embedded tokens have variance 1. T5 starts like this too (Raffel et al. 2020, the defaults of Mesh TensorFlow).
`zero_residual` starts the last matrix of every sublayer at zero: a pre-norm block is then the identity (Zhang et al.
2019, Fixup). Biases start at 0, norm gains at 1, ReZero gains and the weights of neighbours at 0, value gains at 0.5.
"""

import math

from torch import nn

from lit_tfm.nn.attention import Attention
from lit_tfm.nn.feed_forward import FeedForward
from lit_tfm.nn.neighbours import Neighbours
from lit_tfm.nn.norm import Norm, Residual
from lit_tfm.nn.positions import Learned, Positions, T5Buckets


def init_weights(
    model: nn.Module, *, std: float | None, zero_residual: bool, depth_scaled: bool = False, table_std: float = 1.0
) -> None:
    """Fill every parameter and computed table of `model`. `table_std`: embeddings and positions when `std` is None."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=std or module.in_features**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=std or table_std)
        elif isinstance(module, Norm):
            _reset_norm(module)
        elif isinstance(module, Neighbours):
            nn.init.zeros_(module.weight)
        elif isinstance(module, Residual) and module.gain is not None:
            nn.init.zeros_(module.gain)
        elif isinstance(module, Positions):
            _reset_positions(module, std, table_std)
    sublayers = [module for module in model.modules() if isinstance(module, Attention | FeedForward)]
    for sublayer in sublayers:
        _reset_sublayer(sublayer, std, zero_residual, len(sublayers) if depth_scaled else 1)


def _reset_norm(norm: Norm) -> None:
    if norm.weight is not None:
        nn.init.ones_(norm.weight)
    if norm.bias is not None:
        nn.init.zeros_(norm.bias)


def _reset_positions(positions: Positions, std: float | None, table_std: float) -> None:
    positions.fill()
    if isinstance(positions, Learned):
        nn.init.normal_(positions.weight, std=std or table_std)
    elif isinstance(positions, T5Buckets):
        nn.init.normal_(positions.weight, std=std or 0.02)  # small beside logits of variance 1


def _reset_sublayer(sublayer: Attention | FeedForward, std: float | None, zero: bool, residuals: int) -> None:
    last = sublayer.down if isinstance(sublayer, FeedForward) else sublayer.output
    if zero:
        nn.init.zeros_(last.weight)
    elif residuals > 1:
        nn.init.normal_(last.weight, std=(std or last.in_features**-0.5) / math.sqrt(residuals))
    if isinstance(sublayer, FeedForward):
        return
    if sublayer.value_gain is not None:
        nn.init.constant_(sublayer.value_gain, 0.5)
    if std is None and sublayer.scale is not None and sublayer.q_norm is None:
        # Logits that are not divided by sqrt(D) start as if they were: T5 folds that into the queries' matrix.
        queries = sublayer.q if sublayer.cross else sublayer.qkv
        rows = slice(sublayer.n_heads * sublayer.head_dim)
        queries.weight.data[rows] *= sublayer.head_dim**-0.5 / sublayer.scale
