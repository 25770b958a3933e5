//! What every input file has in common: compression, encodings, and what is wrong with it.
