# What the rules of ship look up: whom there is to choose from, and who was chosen.
from kdpipe.json_files import read_object

SHIP = PATHS.ship()


def candidates(path):
    """Input function: `path` with {folder} or {profile} of all cells to choose from."""

    @asked_once
    def resolve(wildcards):
        run = RUNS[f"{SHIP.format(**wildcards)}/choice/run.json"]
        return list(
            dict.fromkeys(path.format(**cell) for cell in run["students"] + run["teachers"])
        )

    return resolve


def choice_of(wildcards):
    """What was chosen; until then the graph ends here."""
    return read_object(Path(checkpoints.choose_student.get(**wildcards).output.choice), "chosen")


@asked_once
def chosen_model(wildcards):
    """Input function: model.pt of the chosen student, and of no other."""
    return f"{choice_of(wildcards)['chosen']['folder']}/model.pt"


@asked_once
def chosen_code(wildcards):
    """Params function: digest of the code that exports the chosen network."""
    cell = CELLS[choice_of(wildcards)["chosen"]["folder"]]
    return code_digest(*PLAN.stage_modules("export", cell))


@asked_once
def chosen_facts(wildcards):
    """Input function: what is known of the chosen student and of its teacher."""
    choice = choice_of(wildcards)
    return [
        f"{choice[role][folder]}/{name}"
        for role in ("chosen", "teacher")
        for folder, name in (
            ("folder", "run.json"),
            ("folder", "model.json"),
            ("profile", "profile.json"),
        )
    ]
