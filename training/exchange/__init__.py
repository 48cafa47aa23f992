"""SAEs of other libraries, read into ours: SAELens folders, dictionary_learning and Overcomplete torch files.

Each format has one file; `recognition` says which a path is, `folding` has the rewrites that several of them share.
What cannot be brought to our two inference rules with the same codes is refused. docs/exchange.md has the rules in
words. Knows nothing of encoders or bundles.
"""

from training.exchange.reading import Foreign, read, read_foreign
from training.exchange.starting import as_selection, as_weights

__all__ = ["Foreign", "as_selection", "as_weights", "read", "read_foreign"]
