"""How annotations are checked while the tests run: as beartype does, with whole numbers welcome where numbers are."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
