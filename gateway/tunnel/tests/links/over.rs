//! The same tests over each transport.

/// Makes tests of functions that say what they run over.
macro_rules! tests_over {
    ($($over:ident in $module:ident: $($name:ident),+;)+) => {$(
        mod $module {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name($crate::support::Over::$over).await;
            })+
        }
    )+};
}
pub(crate) use tests_over;
