"""Every path of a study, in one place. Wildcards are Snakemake's: ``{dataset}``, ``{seed}``, ...

Paths are strings relative to the working directory, as Snakemake compares targets as text.
"""

from __future__ import annotations

from dataclasses import dataclass

FOLD = "{dataset}/{split}/fold{fold}"
TEACHER = FOLD + "/teachers/{teacher}/seed{seed}"
ARM = FOLD + "/students/{teacher}/{student}/{method}"
STUDENT = ARM + "/seed{seed}"
#: stands for the teacher in the path of a method that needs none
NO_TEACHER = "no_teacher"

#: what each wildcard may look like; labels come from `kdpipe.config`
WILDCARDS = {
    "dataset": r"[a-z0-9_]+",
    "preset": r"[A-Za-z0-9_]+",
    "split": r"[A-Za-z0-9_]+",
    "fold": r"\d+",
    "seed": r"\d+",
    "teacher": r"[A-Za-z0-9_.+-]+",
    "student": r"[A-Za-z0-9_.+-]+",
    "method": r"[A-Za-z0-9_.+-]+",
    "cell": r".+/(?:teachers|students)/.+/seed\d+",
    "arm": r".+/students/.+\+tuned",
    "profile": r".+/profiles/(?:teachers|students)/[A-Za-z0-9_.+-]+",
    "study": r"[A-Za-z0-9_.-]+",
}

#: students as configured, in one trial of a budget, with the settings that were chosen
DEFAULT_STUDENT = r".+/students/(?!.*\+(?:trial\d+|tuned)/seed\d+(?:/|$)).+/seed\d+"
TRIAL_STUDENT = r".+/students/.+\+trial\d+/seed\d+"
TUNED_STUDENT = r".+/students/.+\+tuned/seed\d+"


@dataclass(frozen=True)
class Paths:
    """Paths below the two roots of a study."""

    data_root: str
    results_root: str

    def archives(self, dataset: str = "{dataset}") -> str:
        """Folder of a data set's files as published; what cannot be downloaded is put there."""
        return f"{self.data_root}/archives/{dataset}"

    def raw(self, dataset: str = "{dataset}") -> str:
        """Folder of a data set as downloaded, generated or indexed."""
        return f"{self.data_root}/raw/{dataset}"

    def prepared(self, dataset: str = "{dataset}", preset: str = "{preset}") -> str:
        """Folder of a data set's resampled arrays."""
        return f"{self.data_root}/prepared/{dataset}/{preset}"

    def fold(self, **keys: object) -> str:
        """Folder of one split: ``split.json`` and everything trained on it."""
        return f"{self.results_root}/{_fill(FOLD, keys)}"

    def teacher(self, **keys: object) -> str:
        """Cell of a trained teacher."""
        return f"{self.results_root}/{_fill(TEACHER, keys)}"

    def student(self, **keys: object) -> str:
        """Cell of a distilled student."""
        return f"{self.results_root}/{_fill(STUDENT, keys)}"

    def arm(self, **keys: object) -> str:
        """Folder of a distilled student's cells, one a seed."""
        return f"{self.results_root}/{_fill(ARM, keys)}"

    def stage(self, dataset: str = "{dataset}", stage: str = "{stage}") -> str:
        """Folder of a data set's settings for prediction or evaluation."""
        return f"{self.results_root}/{dataset}/{stage}"

    def profile(self, dataset: str, role: str, network: str) -> str:
        """Folder of what a network costs; `role` is ``teacher`` or ``student``."""
        return f"{self.results_root}/{dataset}/profiles/{role}s/{network}"

    def ship(self, study: str = "{study}", **keys: object) -> str:
        """Folder of the student that a study hands out for one split."""
        return f"{self.fold(**keys)}/ship/{study}"

    def tables(self, study: str = "{study}") -> str:
        """Folder of a study's tables."""
        return f"{self.results_root}/tables/{study}"

    def figures(self, study: str = "{study}") -> str:
        """Folder of a study's figures."""
        return f"{self.results_root}/figures/{study}"

    def overlays(self, study: str = "{study}") -> str:
        """Folder of a study's pictures of single cases."""
        return f"{self.results_root}/overlays/{study}"

    def report(self, study: str = "{study}") -> str:
        """The report of a study, one file."""
        return f"{self.results_root}/reports/{study}.html"


def _fill(template: str, keys: dict[str, object]) -> str:
    for key, value in keys.items():
        template = template.replace("{" + key + "}", str(value))
    return template
