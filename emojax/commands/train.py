"""`emojax train`: networks on labelled images, or a small CLIP on rendered faces."""

from emojax import settings
from emojax.commands.base import Command, WritesRun, out_folder
from emojax.section import UserPath


class TrainSettings(WritesRun):
    """Settings of a training."""

    data: settings.Data = settings.Data()
    train: settings.Train = settings.Train()
    evaluate: settings.Evaluate = settings.Evaluate()
    cache: UserPath = settings.CACHE
    out: UserPath = out_folder("train")


def train(settings: TrainSettings) -> None:
    """Trains what the settings ask for into a run folder; a training that was stopped resumes."""
    from emojax.commands import train_steps
    from emojax.commands.console import say_written
    from emojax.commands.opening import open_split_of

    train_steps.train(settings, open_split_of)
    say_written(settings.out)


COMMAND = Command(
    "train",
    "train a VGGNet or a Deep-Emotion on labelled images, or a small CLIP on rendered faces",
    TrainSettings,
    train,
    short={"--task": "--train.task"},
)
