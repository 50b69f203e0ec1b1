"""Where the time of a training step goes: a table of operations and a trace for Perfetto or chrome://tracing."""

from pathlib import Path

from lightning import Callback, Trainer
from torch.profiler import ProfilerActivity, profile, schedule


class Profile(Callback):
    """Profiles steps 5 to 14 (the first ones warm up) and writes profile.txt and trace.json into the run folder."""

    def __init__(self, output_dir: str) -> None:
        self.folder = Path(output_dir)

    def on_train_start(self, trainer: Trainer, pl_module) -> None:
        self.profiler = profile(
            activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA],
            schedule=schedule(wait=3, warmup=2, active=10, repeat=1),
            on_trace_ready=self._write,
        )
        self.profiler.start()

    def on_train_batch_end(self, *args) -> None:
        self.profiler.step()

    def on_train_end(self, trainer: Trainer, pl_module) -> None:
        self.profiler.stop()

    def _write(self, profiler: profile) -> None:
        table = profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=30)
        (self.folder / "profile.txt").write_text(table)
        profiler.export_chrome_trace(str(self.folder / "trace.json"))
