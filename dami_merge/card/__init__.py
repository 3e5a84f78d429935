"""What a variant's repository tells its readers: the card, the picture of λ, mergekit's configuration, scores."""

from dami_merge.card.card_files import CardFiles, make_card_files, make_family_card
from dami_merge.card.endpoint_ids import base_models, hub_id
from dami_merge.card.licence import Licence, LicenceReader, decide_licence, read_licence

__all__ = [
    "CardFiles", "Licence", "LicenceReader", "base_models", "decide_licence", "hub_id", "make_card_files",
    "make_family_card", "read_licence",
]  # fmt: skip
