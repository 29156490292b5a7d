"""Runs inspect_ai's own checks of a sandbox against ours and prints a JSON object: name of each check to what it said.

Run by `test_inspect.py` with an interpreter that has inspect_ai; not collected by pytest.
"""

import asyncio
import json

from inspect_ai.util._sandbox import self_check

from baleen.agent.adapters.inspect import BaleenSandboxEnvironment


async def main():
    said = {}
    for name in self_check.__all__:
        environments = await BaleenSandboxEnvironment.sample_init("checks", None, {})
        try:
            await getattr(self_check, name)(environments["default"])
            said[name] = "passed"
        except Exception as error:  # noqa: BLE001 - whatever a check raises is what it says
            said[name] = f"{type(error).__name__}: {error}"
        finally:
            await BaleenSandboxEnvironment.sample_cleanup("checks", None, environments, False)
    print(json.dumps(said))


if __name__ == "__main__":
    asyncio.run(main())
