//! Part of Plimsoll.
