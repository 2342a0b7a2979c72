//! Three clouds on one machine, with the Bookinfo application spread over them.
