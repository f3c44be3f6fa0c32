"""Forms of the actions on models and on a store.

An action is declared in lmcore/cli, for the command line too. Its form has the same parameters, but for what ``InForm``
says, and its flow shows what the command prints.
"""

import inspect
from collections.abc import Callable, Iterator
from functools import wraps
from inspect import Parameter, Signature
from typing import Annotated, Any, get_args

from prefect import get_run_logger, task
from prefect.runtime import flow_run
from prefect.states import Failed

from flows.form import ACTION, FormFlow, documented
from lmcore.cli import runs, store
from lmcore.cli import versions as of_model
from lmcore.cli.options import InForm
from lmcore.cli.outcome import Outcome
from tasks.pages import show_table
from tasks.policies import NEVER_CACHED, RETRIED
from tasks.retraining import use_hub_token

Action = Callable[..., Outcome]


def action_flow(action: Action, flow_run_name: str, name: str = "", **options: Any) -> FormFlow[..., Any]:
    """The flow of an action; its name is that of the action unless another is given."""
    signature, name = inspect.signature(action), name or action.__name__

    def flow(*values: Any, **fields: Any) -> Any:
        entered = form.bind(*values, **fields).arguments
        arguments = [entered.pop(each.name) for each in _positional(signature) if each.name in entered]
        return show(action(*arguments, **entered))

    def run_name() -> str:
        return " ".join(flow_run_name.format(**flow_run.parameters).split())  # without the gaps of empty fields

    form = Signature(sorted(_fields(signature), key=_position))
    flow.__signature__ = form  # type: ignore[attr-defined]
    flow.__annotations__ = {field.name: field.annotation for field in form.parameters.values()}
    flow.__name__, flow.__qualname__, flow.__doc__ = name, name, action.__doc__
    about = inspect.getdoc(action) or ""
    return FormFlow(
        documented(flow),
        name=name,
        description=about.partition("\n\nArgs:")[0],
        flow_run_name=run_name,
        **ACTION | options,
    )


def show(outcome: Outcome) -> Any:
    """Put an outcome on the page of the run. Returns its data, or a failed state where something is wrong."""
    for line in outcome.notes:
        get_run_logger().info(line)
    for key, rows in outcome.tables.items():
        show_table(key, rows, outcome.sentence)
    return outcome.data if outcome.ok else Failed(message=outcome.sentence)


def _fields(signature: Signature) -> Iterator[Parameter]:
    for parameter in signature.parameters.values():
        in_form = next((each for each in get_args(parameter.annotation)[::-1] if isinstance(each, InForm)), None)
        if in_form is None:
            yield parameter.replace(kind=Parameter.POSITIONAL_OR_KEYWORD)
        elif not in_form.hidden:
            yield _in_form(parameter, in_form)


def _in_form(parameter: Parameter, in_form: InForm) -> Parameter:
    annotation = parameter.annotation
    if in_form.annotation:
        annotation = Annotated[in_form.annotation, *get_args(annotation)[1:]]
    return parameter.replace(kind=Parameter.POSITIONAL_OR_KEYWORD, default=in_form.default, annotation=annotation)


def _position(field: Parameter) -> tuple[bool, bool]:
    """A form begins with what must be entered, then the model."""
    return field.default is not Parameter.empty, field.name != "model_name"


def _positional(signature: Signature) -> list[Parameter]:
    return [each for each in signature.parameters.values() if each.kind is Parameter.POSITIONAL_ONLY]


evaluate = action_flow(runs.evaluate, "evaluate {model_name} {model}", persist_result=True)
verify = action_flow(of_model.verify, "verify {model_name} {version}")
diff = action_flow(of_model.diff, "differences of {model_name}")
rollback = action_flow(of_model.rollback, "roll {model_name} back")
promote = action_flow(of_model.promote, "promote {model_name} {version}")


@wraps(of_model.push)
def _push_with_token(*arguments: Any, **options: Any) -> Outcome:
    use_hub_token()
    return of_model.push(*arguments, **options)


_push: Any = task(name="push", task_run_name="push to {repository}", **NEVER_CACHED, **RETRIED)(_push_with_token)
push = action_flow(_push, "push {model_name} {version} to {repository}")
prune = action_flow(of_model.prune, "prune {model_name}")
versions = action_flow(of_model.models, "versions {model_name}", name="versions")
gc = action_flow(store.gc, "gc {store}")
forget = action_flow(store.forget, "forget {document}")

OF_MODEL = [evaluate, verify, diff, rollback, promote, push, prune, versions]
OF_STORE = [gc, forget]
