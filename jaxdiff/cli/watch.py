"""`jaxdiff watch`: when something in a video is to be heard, seen in its pictures alone: a cue sheet."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from jaxdiff import __version__, ranges

from . import files

if TYPE_CHECKING:
    from jaxdiff.data.video import VideoInfo
    from jaxdiff.inference.watch import Watched


@dataclass(frozen=True)
class Watch:
    """Watch a video for impacts (what bounces, strikes, steps, falls) and write them as a cue sheet: a CSV with time,
    class, strength and pan of each, a picture of the curves of motion and a JSON sidecar beside it."""

    video: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="VIDEO")]
    """video file; its sound, if any, is not listened to"""
    out: Path
    """the cue sheet, a CSV; the picture and the sidecar have its name with .png and .json"""
    label: Annotated[str, tyro.conf.arg(name="class")] = "impact"
    """class of all cues"""
    threshold: ranges.Share = 0.5
    """how sure an impact must be, 0 to 1: lower finds more, and more that is none"""
    rules: bool = False
    """find impacts by rules instead of by the trained network"""
    overwrite: bool = False
    """replace files that are there"""
    debug: bool = False
    """show the traceback of an error"""

    def run(self) -> int:
        if not self.label.strip() or not self.label.isprintable():
            raise ValueError(f"--class {self.label!r}: expected a name, as footstep")
        if self.out.is_dir() or self.out.suffix.lower() != ".csv":
            raise ValueError(f"--out {self.out}: expected a file that ends with .csv, as {self.out / 'cues.csv'}")
        target = self.out.with_suffix("")
        picture, sidecar = (files.beside(target, end) for end in (".png", ".json"))
        files.refuse_existing([self.out, picture, sidecar], self.overwrite)
        from jaxdiff.data.cues import write_cues
        from jaxdiff.data.files import atomic
        from jaxdiff.data.video import video_info

        about = video_info(self.video)  # before jax is imported
        from rich.progress import Progress

        from jaxdiff.inference.pictures import draw, watched
        from jaxdiff.inference.watch import watch_file

        with Progress(transient=True, disable=not sys.stderr.isatty()) as progress:
            task = progress.add_task("watching", total=1.0)
            found = watch_file(
                self.video,
                label=self.label.strip(),
                threshold=self.threshold,
                rules=self.rules,
                tell=lambda share: progress.update(task, completed=share),
            )
        self.out.parent.mkdir(parents=True, exist_ok=True)
        write_cues(self.out, found.cues)
        with atomic(sidecar) as temporary:
            temporary.write_text(json.dumps(self._sidecar(about, found), indent=1) + "\n", encoding="utf-8")
        draw(picture, lambda: watched(found, self.threshold, self.video.name))
        cues, cuts = len(found.cues), len(found.cuts)
        cut = f", {cuts} cut{'' if cuts == 1 else 's'}" if cuts else ""
        none = "" if cues else "; a lower --threshold finds more"
        length = found.seconds[-1] - found.seconds[0]
        print(f"{self.out}: {cues or 'no'} impact{'' if cues == 1 else 's'} in {length:.1f} s of video{cut}{none}")
        return 0

    def _sidecar(self, about: "VideoInfo", found: "Watched") -> dict:
        return {
            "jaxdiff": __version__,
            "source": str(self.video),
            "video": about._asdict(),
            "detector": "rules" if self.rules else "network",
            "threshold": self.threshold,
            "class": self.label.strip(),
            "cues": len(found.cues),
            "cuts": [round(float(seconds), 3) for seconds in found.cuts],
        }
