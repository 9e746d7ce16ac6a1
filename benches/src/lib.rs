//! Criterion benches of Plimsoll beside its peers; see `benches/`.
