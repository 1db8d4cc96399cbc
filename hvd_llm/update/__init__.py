"""When weights change: at once, layer by layer, a step later, or apart on every rank."""

from hvd_llm.config import Config
from hvd_llm.reduce.sender import Route
from hvd_llm.routing import Plan
from hvd_llm.state import State
from hvd_llm.update.apart import Apart
from hvd_llm.update.at_once import Update
from hvd_llm.update.delayed import DelayedUpdate
from hvd_llm.update.layer_by_layer import LayerByLayer


def build(config: Config, state: State, plan: Plan, route: Route) -> Update:
    """The way of changing weights, and of summing gradients for it, that `config` asks for."""
    if config.sync.every > 1:
        return Apart(config, state, plan, route)
    if config.reduce.delay:
        return DelayedUpdate(config, state, plan, route)
    if config.reduce.overlap == "forward":
        return LayerByLayer(config, state, plan, route)
    return Update(config, state, plan, route)
