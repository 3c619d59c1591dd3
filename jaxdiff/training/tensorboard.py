"""The log and the sounds of a run as TensorBoard reads them: event files in a folder, which nothing else is read from.

Numbers have the names of the log, norms of blocks those of `gradient_norms/BLOCK`; sounds and their spectrograms are
the files of a preview, byte for byte. A training that goes on tells TensorBoard to forget what it does again.
"""

import importlib
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FLUSH = 10  # seconds after which what was written can be read


def check() -> None:
    """Raise ValueError where the package that writes event files is missing."""
    try:
        import tensorboardX.event_file_writer  # noqa: F401
    except ImportError:
        raise ValueError(
            "train.tensorboard needs tensorboardX, which is missing; pip install 'jaxdiff[tensorboard]' or set it to no"
        ) from None


class Board:
    """Event files in `folder` of a training that begins after step `begin`; made with the first that is written.

    As a context it closes them. What cannot be written costs a warning, and no more is.
    """

    def __init__(self, folder: Path, begin: int):
        check()
        self.folder, self.begin = folder, begin
        self._writer, self._flushed, self._over = None, 0.0, False

    def __enter__(self) -> "Board":
        return self

    def __exit__(self, *error: Any) -> None:
        if self._writer is not None and not self._over:
            self._safely(self._writer.close)

    def row(self, row: Mapping[str, Any]) -> None:
        """Write a row of the log."""
        numbers = {}
        for name, value in row.items():
            if isinstance(value, Mapping):
                numbers |= {f"{name}/{key}": number for key, number in value.items()}
            elif name != "step" and isinstance(value, int | float):
                numbers[name] = value
        values = [_messages("summary").Summary.Value(tag=name, simple_value=x) for name, x in numbers.items()]
        self._safely(lambda: self._append(row["step"], values))

    def sounds(self, step: int, folder: Path) -> None:
        """Write the WAV files of a folder and the PNG files of their names."""
        self._safely(lambda: self._append(step, _values(folder)))

    def _append(self, step: int, values: list[Any]) -> None:
        from tensorboardX.event_file_writer import EventsWriter

        event, summary = _messages("event"), _messages("summary").Summary(value=values)
        if self._writer is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._writer = EventsWriter(str(self.folder / "events"), f".{self.begin}")
            if self.begin:  # what comes after it is done again
                again = event.SessionLog(status=event.SessionLog.START)
                self._writer.write_event(event.Event(wall_time=time.time(), step=self.begin + 1, session_log=again))
        self._writer.write_event(event.Event(wall_time=time.time(), step=step, summary=summary))
        if time.monotonic() - self._flushed >= FLUSH:
            self._writer.flush()
            self._flushed = time.monotonic()

    def _safely(self, write: Any) -> None:
        if self._over:
            return
        try:
            write()
        except Exception as error:  # whatever it is, training does not need it
            self._over = True
            what = f"{self.folder}: cannot be written ({error}); training goes on without TensorBoard"
            warnings.warn(what, stacklevel=2)


def _messages(name: str) -> Any:
    """The classes of TensorBoard's messages, which protobuf makes when they are imported."""
    return importlib.import_module(f"tensorboardX.proto.{name}_pb2")


def _values(folder: Path) -> list[Any]:
    """The sounds of a folder and their pictures."""
    import soundfile

    values, summary = [], _messages("summary").Summary
    for path in sorted(folder.glob("*.wav")):
        about = soundfile.info(path)
        audio = summary.Audio(
            sample_rate=about.samplerate,
            num_channels=about.channels,
            length_frames=about.frames,
            encoded_audio_string=path.read_bytes(),
            content_type="audio/wav",
        )
        values.append(summary.Value(tag=f"sounds/{path.stem}", audio=audio))
        if (picture := path.with_name(f"{path.stem}.png")).exists():
            png = picture.read_bytes()
            width, height = (int.from_bytes(png[i : i + 4], "big") for i in (16, 20))  # of the header, IHDR
            image = summary.Image(width=width, height=height, colorspace=4, encoded_image_string=png)
            values.append(summary.Value(tag=f"spectrograms/{path.stem}", image=image))
    return values
