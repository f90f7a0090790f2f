"""Classes whose instances never change, on hot paths: held to that by the type checker alone.

A frozen attrs class sets each attribute through `object.__setattr__` when it is made, which takes three times as long
as plain assignments; and operations, entries and messages are made by the thousand each second.
"""

from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from attrs import frozen as value_class
else:

    def value_class(*arguments, **options):
        """As `attrs.frozen`, but that nothing stops an assignment at run time."""
        return attrs.define(*arguments, unsafe_hash=True, **options)
