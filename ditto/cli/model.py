"""`ditto model`: import a checkpoint, share its weights between the parties, grant, remove, list, show, check."""

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from ditto.cli.common import PRESET_HELP, ConfigFile, Json, connect, emit, err, manage, note, one_line, out, warn
from ditto.cli.model_check import check
from ditto.cli.model_show import SHORT, show
from ditto.cli.plan import For, MachineFile, Tolerance, check_objective, machine_at, planned
from ditto.cli.texts import read_file, read_lines
from ditto.cli.waiting import texts_done, waiting
from ditto.client import hub, store
from ditto.errors import DittoError, UsageError
from ditto.names import check_name
from ditto.net.emulation import network as profile

if TYPE_CHECKING:
    from ditto.models import Checkpoint, Description
    from ditto.models.architecture import Texts
    from ditto.net.emulation import Network
    from ditto.planning.machine import Machine
    from ditto.planning.post_training import Choose
    from ditto.presets.choices import Choices

app = typer.Typer(help="Models: import, share, grant, remove, list, show, check.", no_args_is_help=True)

COLUMNS = ("name", "architecture", "preset", "max_length")


class Embeddings(StrEnum):
    secret = "secret"
    public = "public"


def _row(description: "Description") -> dict[str, Any]:
    """What lists show of a model."""
    values = (description.name, description.architecture, description.preset, description.dimensions.positions)
    return dict(zip(COLUMNS, values, strict=True))


@app.command("import")
def import_(
    dir: Annotated[Path, typer.Argument(help="A checkpoint's directory, or its name on the Hugging Face hub.")],
    calibrate: Annotated[
        Path | None,
        typer.Option(
            help="A text file, one sentence (or pair, with a tab) a line, typical of later use. "
            "Not needed for what `ditto distill` made."
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="The model's name; default: the directory's.")] = None,
    revision: Annotated[str | None, typer.Option(help="Of a name on the hub: commit, branch or tag.")] = None,
    preset: Annotated[
        str | None,
        typer.Option(help=f"{PRESET_HELP} Default: ditto, or what it was distilled for."),
    ] = None,
    embeddings: Annotated[
        Embeddings, typer.Option(help="Is the word-embedding table a secret, or looked up by the client?")
    ] = Embeddings.secret,
    network: Annotated[
        str | None, typer.Option(help="Choose what the preset leaves open for this network, as `ditto plan` does.")
    ] = None,
    objective: For = "latency",
    tolerance: Tolerance = None,
    sensitivity: Annotated[
        float | None,
        typer.Option(min=0, help="Choose by what each choice adds to the answers' loss, this much in all at most."),
    ] = None,
    seq: Annotated[int, typer.Option(min=2, max=512, help="Tokens of a usual request, by which choices cost.")] = 128,
    machine: MachineFile = None,
    report: Annotated[
        Path | None, typer.Option(help="Write ranges, types, costs and errors by layer, as .json or .md.")
    ] = None,
    only_mine: Annotated[
        bool,
        typer.Option("--only-mine", help="Calibrate on these texts alone, without the hard ones that come with ditto."),
    ] = False,
    held_out: Annotated[
        Path | None, typer.Option(help="With --report: texts to measure on; default: those of the calibration.")
    ] = None,
    json: Json = False,
) -> None:
    """Calibrate and quantize a checkpoint; nothing leaves this machine yet."""
    check_objective(objective)
    emulated = profile(network) if network else None
    known = check_name(name or dir.resolve().name)
    if calibrate is not None and not calibrate.is_file():
        raise UsageError(f"{calibrate}: no such calibration file")
    if held_out and not report:
        raise UsageError("--held-out is for --report")
    from ditto.models import load_checkpoint
    from ditto.models.advice import check_directory
    from ditto.models.calibrated import is_calibrated
    from ditto.models.calibration import calibrate as calibrated_on
    from ditto.models.importer import batches_of, with_its_ranges
    from ditto.planning import import_report
    from ditto.planning.answers import Trial
    from ditto.planning.post_training import post_train
    from ditto.presets import preset_of

    if report:
        import_report.check_suffix(report)
    if hub.on_hub(dir):
        dir = hub.fetch(str(dir), revision, json or not err.is_terminal, note)
    elif revision is not None:
        raise UsageError(f"--revision is for a name on the hub; {dir} is here, or is no such name")
    check_directory(dir)
    if calibrate is None and not is_calibrated(dir):
        raise UsageError(f"{dir} brings no calibrated ranges: name texts with --calibrate FILE")
    if calibrate is None and only_mine:
        raise UsageError("--only-mine is about the texts of --calibrate FILE")
    if calibrate is None and (report or sensitivity is not None):
        raise UsageError("--report and --sensitivity measure on texts: name them with --calibrate FILE")
    chosen, checkpoint = preset_of(preset or "ditto"), load_checkpoint(dir)
    texts = _texts(calibrate, checkpoint) if calibrate else []
    others = _texts(held_out, checkpoint) if held_out else texts
    if calibrate and chosen.distilled and not (chosen.style.quad and checkpoint.dimensions.activation == "quad"):
        note(f"preset {preset} replaces functions: its answers mean something only for a model trained with them")
    if not json:
        more = "" if only_mine else " and the hard ones that come with ditto"
        how = f"calibrating on {len(texts)} texts{more}" if texts else "as distilled"
        note(f"{dir}: {checkpoint.class_name}; {how}")
    say: Callable[[str], None] = (lambda text: None) if json else note
    calibration = None
    if calibrate:
        with waiting(json) as wait:
            calibration = calibrated_on(checkpoint, texts, hard=not only_mine, progress=texts_done(wait))
    batches = calibration.batches if calibration else []
    measured = batches_of(checkpoint, others) if held_out else batches
    choose = None
    if emulated or sensitivity is not None or tolerance is not None:
        rates = machine_at(machine, False, json) if emulated else None
        choose = _chooser(emulated, objective, tolerance, rates, seq, sensitivity, batches, say)
    ready = None if calibrate else with_its_ranges(checkpoint, known, preset, embeddings.value)
    made = post_train(checkpoint, known, calibration, chosen.name, embeddings.value, choose, ready)
    description, assessment = made.description, made.assessment
    model = store.save(description, made.encoded, dir)
    if report:
        say("measuring the report's errors")
        trial = Trial(made.checkpoint, measured)
        found = import_report.document(made.steps, trial, seq, held_out is not None)
        import_report.write(report, found | {"calibration": assessment.document() if assessment else None})
    for text in assessment.warnings() if assessment else []:
        warn(text)
    summary = _row(description) | {"embeddings": description.embeddings, "dir": str(model.dir)}
    summary |= {"calibration": assessment.document() if assessment else None}
    if json:
        emit(summary)
    else:
        out.print(f"imported {known} ({description.architecture}, preset {description.preset}) into {model.dir}")
        out.print(f"next: ditto cluster up && ditto model share {known}")


def _texts(path: Path, checkpoint: "Checkpoint") -> list[Any]:
    """What to calibrate on. Raises UsageError for a file without a text."""
    from ditto.models import Answer

    lines = read_file(path)
    if checkpoint.architecture.answer is Answer.text:  # where a tab is a character like others
        texts: list[Any] = [line for line in lines.splitlines() if line.strip()]
    else:
        texts = read_lines(lines, str(path), skip_blank=True)
    if not texts:
        raise UsageError(f"{path}: no sentence in this file")
    return texts


def _chooser(
    network: "Network | None", objective: str, tolerance: float | None, machine: "Machine | None", seq: int,
    most: float | None, batches: "list[Texts]", say: Callable[[str], None],
) -> "Choose":  # fmt: skip
    """What is left open is decided by the network, or (without one) by bytes; under a budget of the answers' loss, or
    by stated errors alone."""
    from ditto.planning.answers import Trial
    from ditto.planning.machine import COUNTING
    from ditto.planning.sensitivity import Sensitivity
    from ditto.presets import preset_of

    def choose(description: "Description", checkpoint: "Checkpoint") -> "tuple[Choices, ...]":
        budget = None
        if most is not None and preset_of(description.preset).style.open:
            say("measuring what choices add to the answers' loss")
            budget = Sensitivity(description, Trial(checkpoint, batches)).budget(most)
        on, of = network or profile("loopback"), objective if network else "bytes"
        return planned(description, on, of, tolerance, machine or COUNTING, seq, 1, 1, say, budget).choices

    return choose


@app.command()
def share(
    name: Annotated[str, typer.Argument(help="A model imported before.")],
    config: ConfigFile = None,
    json: Json = False,
) -> None:
    """Send each party its share of the weights, and the coordinator what is public: description and tokenizer."""
    model = store.load(name)
    description, weights, public = model.description, model.weights(), model.published()
    if not public:
        note(f"{name} was imported by an earlier version, or has no tokenizer: only who imported it can ask it")
    with waiting(json) as say, connect(config) as client:

        def sent(done: int, of: int) -> None:
            text = f"{done / 1e6:,.0f} of {of / 1e6:,.0f} MB sent"
            say(f"{name}: {text if done < of else 'the parties open the masked weights'}", done, of)

        client.share_model(description, weights, public, sent)
    elements = sum(w.numel() for w in weights.values())
    if json:
        emit(_row(description) | {"weights": elements, "shared": True, "digest": model.version, "public": [*public]})
    else:
        out.print(f"shared {name}: {elements:,} weights in {len(weights)} tensors, version {model.version[:SHORT]}")
        from ditto.models.registry import generates

        ask = "generate --prompt" if generates(description.architecture) else "infer --text"
        out.print(f'next: ditto {ask} "…" --model {name}')


@app.command()
def grant(
    name: Annotated[str, typer.Argument(help="A model that you shared.")],
    to: Annotated[str, typer.Option("--to", help="Who may ask it: the name in that client's certificate.")],
    config: ConfigFile = None,
    json: Json = False,
) -> None:
    """Let another client ask a model of yours; later sharings of the name as well."""
    _grant(name, to, config, json, revoke=False)


@app.command()
def revoke(
    name: Annotated[str, typer.Argument(help="A model that you shared.")],
    to: Annotated[str, typer.Option("--from", help="Who may not ask it any more.")],
    config: ConfigFile = None,
    json: Json = False,
) -> None:
    """Take back what was granted; a job under way is not ended."""
    _grant(name, to, config, json, revoke=True)


def _grant(name: str, to: str, config: Path | None, json: bool, *, revoke: bool) -> None:
    check_name(name)
    check_name(to)
    with manage(config) as client:
        client.grant_model(name, to, revoke)
    if json:
        emit({"name": name, "client": to, "granted": not revoke})
    else:
        out.print(f"{to} may {'no longer' if revoke else 'now'} ask {name}")


@app.command()
def remove(
    name: Annotated[str, typer.Argument(help="A model that you shared.")],
    config: ConfigFile = None,
    json: Json = False,
) -> None:
    """Have the servers forget a model of yours, its masks included. What is imported here stays."""
    check_name(name)
    with manage(config) as client:
        client.remove_model(name)
    if json:
        emit({"name": name, "shared": False})
    else:
        out.print(f"removed {name} from the servers; others may use the name now")


app.command("show")(show)
app.command("check")(check)


@app.command("list")
def list_(config: ConfigFile = None, json: Json = False) -> None:
    """Show the models imported here and those the parties hold shares of."""
    rows: dict[str, dict[str, Any]] = {}
    here = {model.dir.name: model for model in store.stored()}
    for name, model in here.items():
        rows[name] = _row(model.description) | {
            "imported": True, "shared": False, "digest": model.version, "shared_digest": None,
        }  # fmt: skip
    try:
        with manage(config) as client:
            for entry in client.list_models():
                row = rows.setdefault(entry.name, _row(entry.description) | {"imported": False, "digest": entry.digest})
                row |= {"shared": True, "owner": entry.owner, "shared_digest": entry.digest}
                if entry.name in here and here[entry.name].description == entry.description:
                    row["digest"] = entry.digest  # also where an earlier version wrote the same otherwise
    except DittoError as error:
        if config is not None:
            raise
        note(f"the cluster cannot be asked, so this is what is imported here ({error})")
        for row in rows.values():
            row["shared"] = None
    for row in rows.values():
        row.setdefault("owner", None)
    if json:
        emit(list(rows.values()))
        return
    table = Table(box=None, pad_edge=False)
    for column in (*COLUMNS, "imported", "shared", "owner"):
        table.add_column(column, overflow="fold")  # on 80 columns nothing of a name is lost
    words = {True: "yes", False: "no", None: "?"}
    for row in rows.values():
        differs = row["shared"] and row["shared_digest"] != row["digest"]
        shared = "another version" if differs else words[row["shared"]]
        said = (words[row["imported"]], shared, one_line(row["owner"] or ""))
        table.add_row(*(one_line(row[key]) for key in COLUMNS), *said)
    if rows:
        out.print(table)
    else:
        out.print("no models yet; import one with: ditto model import DIR --calibrate FILE")
