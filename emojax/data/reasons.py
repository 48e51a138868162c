"""What an audit may find wrong with an image; a module of its own, since settings name it too."""

from typing import Literal, get_args

Reason = Literal["unreadable", "blank", "placeholder", "duplicate", "near_duplicate", "leak"]
REASONS: tuple[Reason, ...] = get_args(Reason)
