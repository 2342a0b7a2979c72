//! Files users write, parsed once into settings that cannot be wrong.
