//! The families: which names belong to which row, and what a row says.
