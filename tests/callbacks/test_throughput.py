import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from lit_tfm.callbacks import throughput
from lit_tfm.callbacks.peaks import PEAKS, named_peak, peak
from lit_tfm.callbacks.throughput import Throughput


class Clock:
    """Seconds that pass only where a test says so; the trainer around it is the real one."""

    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(throughput, "perf_counter", clock)
    return clock


class Timed(LightningModule):
    """One second a training batch, a thousand a validation; 100 FLOPs a token."""

    def __init__(self, clock, flops_per_token=100.0, durations=()):
        super().__init__()
        self.clock, self.flops_per_token, self.durations = clock, flops_per_token, dict(durations)
        self.weight = torch.nn.Parameter(torch.ones(()))

    def training_step(self, batch, batch_idx):
        self.clock.now += self.durations.get(self.global_step, 1.0)
        return self.weight

    def validation_step(self, batch, batch_idx):
        self.clock.now += 1000

    def on_save_checkpoint(self, checkpoint):
        self.clock.now += 5000

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Items(torch.utils.data.IterableDataset):
    """Endless batches, each a quarter of a second in the making."""

    def __init__(self, clock, counted=True):
        self.clock, self.counted = clock, counted

    def __iter__(self):
        while True:
            self.clock.now += 0.25
            batch = {"input_ids": torch.zeros(2, 8, dtype=torch.long)}
            yield {**batch, "n_tokens": 10} if self.counted else batch


def run(folder, clock, model, counted=True, **options):
    speed = Throughput()
    settings = {"max_steps": 12, "log_every_n_steps": 4, "limit_val_batches": 0, **options}
    logger = CSVLogger(folder)
    written = []
    logger.log_metrics = lambda metrics, step: written.append((step, dict(metrics)))
    trainer = Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        logger=logger,
        callbacks=[speed, *settings.pop("callbacks", [])],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=settings.pop("enable_checkpointing", False),
        num_sanity_val_steps=0,
        **settings,
    )
    loader = DataLoader(Items(clock, counted), batch_size=None)
    trainer.fit(model, loader, loader)
    return [(step, metrics) for step, metrics in written if "speed/data_wait" in metrics], speed


def test_rates(tmp_path, clock):
    written, speed = run(tmp_path, clock, Timed(clock))
    assert [step for step, _ in written] == [4, 8, 12]
    for _, metrics in written:
        assert metrics == {
            "speed/tokens_per_second": pytest.approx(10 / 1.25),
            "speed/step_seconds": pytest.approx(1.25),
            "speed/data_wait": pytest.approx(0.2),
            "speed/tflops": pytest.approx(10 / 1.25 * 100 / 1e12),
        }
    assert speed.latest == written[-1][1]


def test_all_positions_count_where_the_collator_does_not_say(tmp_path, clock):
    written, _ = run(tmp_path, clock, Timed(clock), counted=False)
    assert written[-1][1]["speed/tokens_per_second"] == pytest.approx(16 / 1.25)


def test_accumulated_steps_hold_all_their_micro_batches(tmp_path, clock):
    written, _ = run(tmp_path, clock, Timed(clock), accumulate_grad_batches=3)
    assert [step for step, _ in written] == [4, 8, 12]
    assert written[-1][1]["speed/step_seconds"] == pytest.approx(3.75)
    assert written[-1][1]["speed/tokens_per_second"] == pytest.approx(10 / 1.25)


def test_validation_and_checkpoints_do_not_count(tmp_path, clock):
    saves = ModelCheckpoint(tmp_path, every_n_train_steps=3)
    options = {"limit_val_batches": 1, "val_check_interval": 5, "check_val_every_n_epoch": None}
    written, _ = run(tmp_path, clock, Timed(clock), callbacks=[saves], enable_checkpointing=True, **options)
    assert clock.now > 20_000
    for _, metrics in written:
        assert 1.0 <= metrics["speed/step_seconds"] <= 1.25
        assert 10 / 1.25 <= metrics["speed/tokens_per_second"] <= 10
        assert metrics["speed/data_wait"] <= 0.2


def test_the_first_step_does_not_count_and_the_median_stands_outliers(tmp_path, clock):
    written, _ = run(tmp_path, clock, Timed(clock, durations={0: 500.0, 5: 100.0}))
    assert written[0][1]["speed/tokens_per_second"] == pytest.approx(10 / 1.25)
    assert written[1][1]["speed/step_seconds"] == pytest.approx(1.25)
    assert written[1][1]["speed/tokens_per_second"] == pytest.approx(40 / 104)


def test_no_flops_without_a_count(tmp_path, clock):
    written, _ = run(tmp_path, clock, Timed(clock, flops_per_token=None))
    assert not any("tflops" in name or "mfu" in name for _, metrics in written for name in metrics)


def test_utilisation_where_the_peak_is_known(tmp_path, clock, monkeypatch):
    monkeypatch.setattr(throughput, "peak", lambda device: 1600.0)
    written, _ = run(tmp_path, clock, Timed(clock))
    assert written[-1][1]["speed/mfu"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("name", "flops"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835.5e12),
        ("NVIDIA H200", 989.4e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA GeForce RTX 3090", 71e12),
        ("Tesla V100-SXM2-16GB", 125e12),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("NVIDIA Something New", None),
        ("", None),
    ],
)
def test_peaks_match_whole_names(name, flops):
    assert named_peak(name) == flops


def test_a_cpu_has_no_known_peak():
    assert peak(torch.device("cpu")) is None
    assert all(1e13 < flops < 1e16 for flops in PEAKS.values())
