"""The engine room: the only one that imports Megatron-Core.

Importing it checks first that Megatron-Core can be imported at all, so that the known ways in which it cannot are
reported as what they are and not as a traceback from deep inside.
"""

from irpo_megatron.engine.imports import import_megatron

import_megatron()
