# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_selfstart_global_optspecs
    string join \n config= app= h/help V/version
end

function __fish_selfstart_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_selfstart_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_selfstart_using_subcommand
    set -l cmd (__fish_selfstart_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c selfstart -n "__fish_selfstart_needs_command" -l config -d 'The configuration; default: $SELFSTART_CONFIG, else /etc/selfstart/config.yaml' -r -F
complete -c selfstart -n "__fish_selfstart_needs_command" -l app -d 'The app, where there are several: its configuration is /etc/selfstart/APP.yaml' -r
complete -c selfstart -n "__fish_selfstart_needs_command" -s h -l help -d 'Print help'
complete -c selfstart -n "__fish_selfstart_needs_command" -s V -l version -d 'Print version'
complete -c selfstart -n "__fish_selfstart_needs_command" -f -a "run" -d 'Keep this node: boot, deploy, mind the pools until told to stop'
complete -c selfstart -n "__fish_selfstart_needs_command" -f -a "check" -d 'Look for what is wrong with the configuration and this machine'
complete -c selfstart -n "__fish_selfstart_needs_command" -f -a "wait" -d 'Wait until the pools are up'
complete -c selfstart -n "__fish_selfstart_needs_command" -f -a "status" -d 'Show the node: release, deploy, pools, workers'
complete -c selfstart -n "__fish_selfstart_needs_command" -f -a "deploy" -d 'Fetch and roll out now'
complete -c selfstart -n "__fish_selfstart_needs_command" -f -a "rollback" -d 'Go back to the previous good release, and hold updates'
complete -c selfstart -n "__fish_selfstart_needs_command" -f -a "releases" -d 'List the releases: state, age, size, who uses them'
complete -c selfstart -n "__fish_selfstart_needs_command" -f -a "start" -d 'Start what is stopped; ends a drain'
complete -c selfstart -n "__fish_selfstart_needs_command" -f -a "stop" -d 'Stop by the stop ladder, and stay stopped'
complete -c selfstart -n "__fish_selfstart_needs_command" -f -a "restart" -d 'Replace workers by new ones, in the order that the pool\'s `update` says'
complete -c selfstart -n "__fish_selfstart_needs_command" -f -a "scale" -d 'Change how many workers a pool has'
complete -c selfstart -n "__fish_selfstart_needs_command" -f -a "signal" -d 'Send a signal to the main processes of workers'
complete -c selfstart -n "__fish_selfstart_needs_command" -f -a "pause" -d 'Stop minding workers, without touching them'
complete -c selfstart -n "__fish_selfstart_needs_command" -f -a "resume" -d 'Mind them again'
complete -c selfstart -n "__fish_selfstart_needs_command" -f -a "drain" -d 'Stop all workers by their ladders and start none; the agent stays'
complete -c selfstart -n "__fish_selfstart_needs_command" -f -a "hold" -d 'No updates until `unhold`'
complete -c selfstart -n "__fish_selfstart_needs_command" -f -a "unhold" -d 'Updates again; deploys what was asked for meanwhile'
complete -c selfstart -n "__fish_selfstart_needs_command" -f -a "reload" -d 'Apply a changed configuration; restarts only what changed'
complete -c selfstart -n "__fish_selfstart_needs_command" -f -a "logs" -d 'Show the output of workers'
complete -c selfstart -n "__fish_selfstart_needs_command" -f -a "events" -d 'Show what happened'
complete -c selfstart -n "__fish_selfstart_needs_command" -f -a "why" -d 'Say why workers ended, or what became of the deploys'
complete -c selfstart -n "__fish_selfstart_needs_command" -f -a "exec" -d 'Run a command as a worker would be run now: its user, environment, directory'
complete -c selfstart -n "__fish_selfstart_needs_command" -f -a "upgrade" -d 'Renew selfstart itself, workers untouched'
complete -c selfstart -n "__fish_selfstart_needs_command" -f -a "install" -d 'Have selfstart started at boot, by systemd or rc.local'
complete -c selfstart -n "__fish_selfstart_needs_command" -f -a "uninstall" -d 'Take away what `install` made'
complete -c selfstart -n "__fish_selfstart_needs_command" -f -a "demo" -d 'Show a whole life on this machine, in a temporary folder'
complete -c selfstart -n "__fish_selfstart_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c selfstart -n "__fish_selfstart_using_subcommand run" -l role -d 'A role of this node, on top of `roles:`; may be repeated' -r
complete -c selfstart -n "__fish_selfstart_using_subcommand run" -l config -d 'The configuration; default: $SELFSTART_CONFIG, else /etc/selfstart/config.yaml' -r -F
complete -c selfstart -n "__fish_selfstart_using_subcommand run" -l app -d 'The app, where there are several: its configuration is /etc/selfstart/APP.yaml' -r
complete -c selfstart -n "__fish_selfstart_using_subcommand run" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c selfstart -n "__fish_selfstart_using_subcommand check" -l role -d 'As for `run`: a role on top of `roles:`; may be repeated' -r
complete -c selfstart -n "__fish_selfstart_using_subcommand check" -l explain -d 'Show each value first, and whether the file or a default says so; or all of them as a file that means the same' -r -f -a "origins\t'A line each, with where it comes from'
yaml\t'The configuration with its defaults written out'"
complete -c selfstart -n "__fish_selfstart_using_subcommand check" -l config -d 'The configuration; default: $SELFSTART_CONFIG, else /etc/selfstart/config.yaml' -r -F
complete -c selfstart -n "__fish_selfstart_using_subcommand check" -l app -d 'The app, where there are several: its configuration is /etc/selfstart/APP.yaml' -r
complete -c selfstart -n "__fish_selfstart_using_subcommand check" -l json -d 'Print the findings as JSON'
complete -c selfstart -n "__fish_selfstart_using_subcommand check" -l offline -d 'Do not ask the source whether it has what is wanted'
complete -c selfstart -n "__fish_selfstart_using_subcommand check" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c selfstart -n "__fish_selfstart_using_subcommand wait" -l timeout -d 'Give up after this long, e.g. 90s; until then an agent that is not there yet is waited for, too' -r
complete -c selfstart -n "__fish_selfstart_using_subcommand wait" -l config -d 'The configuration; default: $SELFSTART_CONFIG, else /etc/selfstart/config.yaml' -r -F
complete -c selfstart -n "__fish_selfstart_using_subcommand wait" -l app -d 'The app, where there are several: its configuration is /etc/selfstart/APP.yaml' -r
complete -c selfstart -n "__fish_selfstart_using_subcommand wait" -l ready -d 'Until every pool has its workers ready (also the default: there is nothing else to wait for)'
complete -c selfstart -n "__fish_selfstart_using_subcommand wait" -s h -l help -d 'Print help'
complete -c selfstart -n "__fish_selfstart_using_subcommand status" -l config -d 'The configuration; default: $SELFSTART_CONFIG, else /etc/selfstart/config.yaml' -r -F
complete -c selfstart -n "__fish_selfstart_using_subcommand status" -l app -d 'The app, where there are several: its configuration is /etc/selfstart/APP.yaml' -r
complete -c selfstart -n "__fish_selfstart_using_subcommand status" -l json -d 'Print the snapshot as JSON'
complete -c selfstart -n "__fish_selfstart_using_subcommand status" -s w -l watch -d 'Go on and show every change, once a second'
complete -c selfstart -n "__fish_selfstart_using_subcommand status" -s h -l help -d 'Print help'
complete -c selfstart -n "__fish_selfstart_using_subcommand deploy" -l ref -d 'Deploy this branch, tag or revision instead of the configured one, this once' -r
complete -c selfstart -n "__fish_selfstart_using_subcommand deploy" -l config -d 'The configuration; default: $SELFSTART_CONFIG, else /etc/selfstart/config.yaml' -r -F
complete -c selfstart -n "__fish_selfstart_using_subcommand deploy" -l app -d 'The app, where there are several: its configuration is /etc/selfstart/APP.yaml' -r
complete -c selfstart -n "__fish_selfstart_using_subcommand deploy" -l force -d 'Also a revision that failed here'
complete -c selfstart -n "__fish_selfstart_using_subcommand deploy" -l no-wait -d 'Answer as soon as it is accepted, not when it took effect'
complete -c selfstart -n "__fish_selfstart_using_subcommand deploy" -l json -d 'Print the answer as JSON'
complete -c selfstart -n "__fish_selfstart_using_subcommand deploy" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c selfstart -n "__fish_selfstart_using_subcommand rollback" -l to -d 'To this one instead of the previous good one: a release\'s name, or at least seven digits of a revision' -r
complete -c selfstart -n "__fish_selfstart_using_subcommand rollback" -l config -d 'The configuration; default: $SELFSTART_CONFIG, else /etc/selfstart/config.yaml' -r -F
complete -c selfstart -n "__fish_selfstart_using_subcommand rollback" -l app -d 'The app, where there are several: its configuration is /etc/selfstart/APP.yaml' -r
complete -c selfstart -n "__fish_selfstart_using_subcommand rollback" -l no-wait -d 'Answer as soon as it is accepted, not when it took effect'
complete -c selfstart -n "__fish_selfstart_using_subcommand rollback" -l json -d 'Print the answer as JSON'
complete -c selfstart -n "__fish_selfstart_using_subcommand rollback" -s h -l help -d 'Print help'
complete -c selfstart -n "__fish_selfstart_using_subcommand releases" -l config -d 'The configuration; default: $SELFSTART_CONFIG, else /etc/selfstart/config.yaml' -r -F
complete -c selfstart -n "__fish_selfstart_using_subcommand releases" -l app -d 'The app, where there are several: its configuration is /etc/selfstart/APP.yaml' -r
complete -c selfstart -n "__fish_selfstart_using_subcommand releases" -l json -d 'Print them as JSON'
complete -c selfstart -n "__fish_selfstart_using_subcommand releases" -s h -l help -d 'Print help'
complete -c selfstart -n "__fish_selfstart_using_subcommand start" -l config -d 'The configuration; default: $SELFSTART_CONFIG, else /etc/selfstart/config.yaml' -r -F
complete -c selfstart -n "__fish_selfstart_using_subcommand start" -l app -d 'The app, where there are several: its configuration is /etc/selfstart/APP.yaml' -r
complete -c selfstart -n "__fish_selfstart_using_subcommand start" -l no-wait -d 'Answer as soon as it is accepted, not when it took effect'
complete -c selfstart -n "__fish_selfstart_using_subcommand start" -l json -d 'Print the answer as JSON'
complete -c selfstart -n "__fish_selfstart_using_subcommand start" -s h -l help -d 'Print help'
complete -c selfstart -n "__fish_selfstart_using_subcommand stop" -l config -d 'The configuration; default: $SELFSTART_CONFIG, else /etc/selfstart/config.yaml' -r -F
complete -c selfstart -n "__fish_selfstart_using_subcommand stop" -l app -d 'The app, where there are several: its configuration is /etc/selfstart/APP.yaml' -r
complete -c selfstart -n "__fish_selfstart_using_subcommand stop" -l no-wait -d 'Answer as soon as it is accepted, not when it took effect'
complete -c selfstart -n "__fish_selfstart_using_subcommand stop" -l json -d 'Print the answer as JSON'
complete -c selfstart -n "__fish_selfstart_using_subcommand stop" -s h -l help -d 'Print help'
complete -c selfstart -n "__fish_selfstart_using_subcommand restart" -l config -d 'The configuration; default: $SELFSTART_CONFIG, else /etc/selfstart/config.yaml' -r -F
complete -c selfstart -n "__fish_selfstart_using_subcommand restart" -l app -d 'The app, where there are several: its configuration is /etc/selfstart/APP.yaml' -r
complete -c selfstart -n "__fish_selfstart_using_subcommand restart" -l no-wait -d 'Answer as soon as it is accepted, not when it took effect'
complete -c selfstart -n "__fish_selfstart_using_subcommand restart" -l json -d 'Print the answer as JSON'
complete -c selfstart -n "__fish_selfstart_using_subcommand restart" -s h -l help -d 'Print help'
complete -c selfstart -n "__fish_selfstart_using_subcommand scale" -l config -d 'The configuration; default: $SELFSTART_CONFIG, else /etc/selfstart/config.yaml' -r -F
complete -c selfstart -n "__fish_selfstart_using_subcommand scale" -l app -d 'The app, where there are several: its configuration is /etc/selfstart/APP.yaml' -r
complete -c selfstart -n "__fish_selfstart_using_subcommand scale" -l no-wait -d 'Answer as soon as it is accepted, not when it took effect'
complete -c selfstart -n "__fish_selfstart_using_subcommand scale" -l json -d 'Print the answer as JSON'
complete -c selfstart -n "__fish_selfstart_using_subcommand scale" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c selfstart -n "__fish_selfstart_using_subcommand signal" -l config -d 'The configuration; default: $SELFSTART_CONFIG, else /etc/selfstart/config.yaml' -r -F
complete -c selfstart -n "__fish_selfstart_using_subcommand signal" -l app -d 'The app, where there are several: its configuration is /etc/selfstart/APP.yaml' -r
complete -c selfstart -n "__fish_selfstart_using_subcommand signal" -l no-wait -d 'Answer as soon as it is accepted, not when it took effect'
complete -c selfstart -n "__fish_selfstart_using_subcommand signal" -l json -d 'Print the answer as JSON'
complete -c selfstart -n "__fish_selfstart_using_subcommand signal" -s h -l help -d 'Print help'
complete -c selfstart -n "__fish_selfstart_using_subcommand pause" -l config -d 'The configuration; default: $SELFSTART_CONFIG, else /etc/selfstart/config.yaml' -r -F
complete -c selfstart -n "__fish_selfstart_using_subcommand pause" -l app -d 'The app, where there are several: its configuration is /etc/selfstart/APP.yaml' -r
complete -c selfstart -n "__fish_selfstart_using_subcommand pause" -l no-wait -d 'Answer as soon as it is accepted, not when it took effect'
complete -c selfstart -n "__fish_selfstart_using_subcommand pause" -l json -d 'Print the answer as JSON'
complete -c selfstart -n "__fish_selfstart_using_subcommand pause" -s h -l help -d 'Print help'
complete -c selfstart -n "__fish_selfstart_using_subcommand resume" -l config -d 'The configuration; default: $SELFSTART_CONFIG, else /etc/selfstart/config.yaml' -r -F
complete -c selfstart -n "__fish_selfstart_using_subcommand resume" -l app -d 'The app, where there are several: its configuration is /etc/selfstart/APP.yaml' -r
complete -c selfstart -n "__fish_selfstart_using_subcommand resume" -l no-wait -d 'Answer as soon as it is accepted, not when it took effect'
complete -c selfstart -n "__fish_selfstart_using_subcommand resume" -l json -d 'Print the answer as JSON'
complete -c selfstart -n "__fish_selfstart_using_subcommand resume" -s h -l help -d 'Print help'
complete -c selfstart -n "__fish_selfstart_using_subcommand drain" -l config -d 'The configuration; default: $SELFSTART_CONFIG, else /etc/selfstart/config.yaml' -r -F
complete -c selfstart -n "__fish_selfstart_using_subcommand drain" -l app -d 'The app, where there are several: its configuration is /etc/selfstart/APP.yaml' -r
complete -c selfstart -n "__fish_selfstart_using_subcommand drain" -l no-wait -d 'Answer as soon as it is accepted, not when it took effect'
complete -c selfstart -n "__fish_selfstart_using_subcommand drain" -l json -d 'Print the answer as JSON'
complete -c selfstart -n "__fish_selfstart_using_subcommand drain" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c selfstart -n "__fish_selfstart_using_subcommand hold" -l why -d 'Shown by `status` to whoever wonders' -r
complete -c selfstart -n "__fish_selfstart_using_subcommand hold" -l config -d 'The configuration; default: $SELFSTART_CONFIG, else /etc/selfstart/config.yaml' -r -F
complete -c selfstart -n "__fish_selfstart_using_subcommand hold" -l app -d 'The app, where there are several: its configuration is /etc/selfstart/APP.yaml' -r
complete -c selfstart -n "__fish_selfstart_using_subcommand hold" -l no-wait -d 'Answer as soon as it is accepted, not when it took effect'
complete -c selfstart -n "__fish_selfstart_using_subcommand hold" -l json -d 'Print the answer as JSON'
complete -c selfstart -n "__fish_selfstart_using_subcommand hold" -s h -l help -d 'Print help'
complete -c selfstart -n "__fish_selfstart_using_subcommand unhold" -l config -d 'The configuration; default: $SELFSTART_CONFIG, else /etc/selfstart/config.yaml' -r -F
complete -c selfstart -n "__fish_selfstart_using_subcommand unhold" -l app -d 'The app, where there are several: its configuration is /etc/selfstart/APP.yaml' -r
complete -c selfstart -n "__fish_selfstart_using_subcommand unhold" -l no-wait -d 'Answer as soon as it is accepted, not when it took effect'
complete -c selfstart -n "__fish_selfstart_using_subcommand unhold" -l json -d 'Print the answer as JSON'
complete -c selfstart -n "__fish_selfstart_using_subcommand unhold" -s h -l help -d 'Print help'
complete -c selfstart -n "__fish_selfstart_using_subcommand reload" -l config -d 'The configuration; default: $SELFSTART_CONFIG, else /etc/selfstart/config.yaml' -r -F
complete -c selfstart -n "__fish_selfstart_using_subcommand reload" -l app -d 'The app, where there are several: its configuration is /etc/selfstart/APP.yaml' -r
complete -c selfstart -n "__fish_selfstart_using_subcommand reload" -l plan -d 'Only show what would change: each value, old and new'
complete -c selfstart -n "__fish_selfstart_using_subcommand reload" -l no-wait -d 'Answer as soon as it is accepted, not when it took effect'
complete -c selfstart -n "__fish_selfstart_using_subcommand reload" -l json -d 'Print the answer as JSON'
complete -c selfstart -n "__fish_selfstart_using_subcommand reload" -s h -l help -d 'Print help'
complete -c selfstart -n "__fish_selfstart_using_subcommand logs" -s n -l lines -d 'How many lines from the past' -r
complete -c selfstart -n "__fish_selfstart_using_subcommand logs" -l config -d 'The configuration; default: $SELFSTART_CONFIG, else /etc/selfstart/config.yaml' -r -F
complete -c selfstart -n "__fish_selfstart_using_subcommand logs" -l app -d 'The app, where there are several: its configuration is /etc/selfstart/APP.yaml' -r
complete -c selfstart -n "__fish_selfstart_using_subcommand logs" -s f -l follow -d 'Go on as lines come'
complete -c selfstart -n "__fish_selfstart_using_subcommand logs" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c selfstart -n "__fish_selfstart_using_subcommand events" -s n -l lines -d 'How many from the past' -r
complete -c selfstart -n "__fish_selfstart_using_subcommand events" -l config -d 'The configuration; default: $SELFSTART_CONFIG, else /etc/selfstart/config.yaml' -r -F
complete -c selfstart -n "__fish_selfstart_using_subcommand events" -l app -d 'The app, where there are several: its configuration is /etc/selfstart/APP.yaml' -r
complete -c selfstart -n "__fish_selfstart_using_subcommand events" -s f -l follow -d 'Go on as events come'
complete -c selfstart -n "__fish_selfstart_using_subcommand events" -l json -d 'Print each as a JSON object on a line'
complete -c selfstart -n "__fish_selfstart_using_subcommand events" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c selfstart -n "__fish_selfstart_using_subcommand why" -s n -l lines -d 'How many, newest first' -r
complete -c selfstart -n "__fish_selfstart_using_subcommand why" -l config -d 'The configuration; default: $SELFSTART_CONFIG, else /etc/selfstart/config.yaml' -r -F
complete -c selfstart -n "__fish_selfstart_using_subcommand why" -l app -d 'The app, where there are several: its configuration is /etc/selfstart/APP.yaml' -r
complete -c selfstart -n "__fish_selfstart_using_subcommand why" -l json -d 'Print them as JSON'
complete -c selfstart -n "__fish_selfstart_using_subcommand why" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c selfstart -n "__fish_selfstart_using_subcommand exec" -l pool -d 'As a worker of this pool; default: the first pool of the configuration' -r
complete -c selfstart -n "__fish_selfstart_using_subcommand exec" -l config -d 'The configuration; default: $SELFSTART_CONFIG, else /etc/selfstart/config.yaml' -r -F
complete -c selfstart -n "__fish_selfstart_using_subcommand exec" -l app -d 'The app, where there are several: its configuration is /etc/selfstart/APP.yaml' -r
complete -c selfstart -n "__fish_selfstart_using_subcommand exec" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c selfstart -n "__fish_selfstart_using_subcommand upgrade" -l binary -d 'The new program. It takes the place of the one that was started when it has passed its trial; default: the one that lies there already, as after an upgrade of the package' -r -F
complete -c selfstart -n "__fish_selfstart_using_subcommand upgrade" -l config -d 'The configuration; default: $SELFSTART_CONFIG, else /etc/selfstart/config.yaml' -r -F
complete -c selfstart -n "__fish_selfstart_using_subcommand upgrade" -l app -d 'The app, where there are several: its configuration is /etc/selfstart/APP.yaml' -r
complete -c selfstart -n "__fish_selfstart_using_subcommand upgrade" -l json -d 'Print the answer as JSON'
complete -c selfstart -n "__fish_selfstart_using_subcommand upgrade" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c selfstart -n "__fish_selfstart_using_subcommand install" -l root -d 'The root of an image: everything is done below it, and nothing on this machine' -r -F
complete -c selfstart -n "__fish_selfstart_using_subcommand install" -l binary -d 'Where the program is to be; this one is copied there if there is none' -r
complete -c selfstart -n "__fish_selfstart_using_subcommand install" -l config -d 'The configuration; default: $SELFSTART_CONFIG, else /etc/selfstart/config.yaml' -r -F
complete -c selfstart -n "__fish_selfstart_using_subcommand install" -l app -d 'The app, where there are several: its configuration is /etc/selfstart/APP.yaml' -r
complete -c selfstart -n "__fish_selfstart_using_subcommand install" -l systemd -d 'By units; the default where systemd is'
complete -c selfstart -n "__fish_selfstart_using_subcommand install" -l rc-local -d 'By a line in /etc/rc.local; the default elsewhere'
complete -c selfstart -n "__fish_selfstart_using_subcommand install" -l force -d 'Replace the program, and put units that somebody changed aside'
complete -c selfstart -n "__fish_selfstart_using_subcommand install" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c selfstart -n "__fish_selfstart_using_subcommand uninstall" -l root -d 'The root of an image' -r -F
complete -c selfstart -n "__fish_selfstart_using_subcommand uninstall" -l config -d 'The configuration; default: $SELFSTART_CONFIG, else /etc/selfstart/config.yaml' -r -F
complete -c selfstart -n "__fish_selfstart_using_subcommand uninstall" -l app -d 'The app, where there are several: its configuration is /etc/selfstart/APP.yaml' -r
complete -c selfstart -n "__fish_selfstart_using_subcommand uninstall" -l force -d 'Also while it runs, and also files that somebody changed'
complete -c selfstart -n "__fish_selfstart_using_subcommand uninstall" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c selfstart -n "__fish_selfstart_using_subcommand demo" -l seconds -d 'About how long it takes, in seconds; the same happens, with more or less time to watch' -r
complete -c selfstart -n "__fish_selfstart_using_subcommand demo" -l config -d 'The configuration; default: $SELFSTART_CONFIG, else /etc/selfstart/config.yaml' -r -F
complete -c selfstart -n "__fish_selfstart_using_subcommand demo" -l app -d 'The app, where there are several: its configuration is /etc/selfstart/APP.yaml' -r
complete -c selfstart -n "__fish_selfstart_using_subcommand demo" -l keep -d 'Leave the temporary folder there, and say how to look around in it'
complete -c selfstart -n "__fish_selfstart_using_subcommand demo" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c selfstart -n "__fish_selfstart_using_subcommand help; and not __fish_seen_subcommand_from run check wait status deploy rollback releases start stop restart scale signal pause resume drain hold unhold reload logs events why exec upgrade install uninstall demo help" -f -a "run" -d 'Keep this node: boot, deploy, mind the pools until told to stop'
complete -c selfstart -n "__fish_selfstart_using_subcommand help; and not __fish_seen_subcommand_from run check wait status deploy rollback releases start stop restart scale signal pause resume drain hold unhold reload logs events why exec upgrade install uninstall demo help" -f -a "check" -d 'Look for what is wrong with the configuration and this machine'
complete -c selfstart -n "__fish_selfstart_using_subcommand help; and not __fish_seen_subcommand_from run check wait status deploy rollback releases start stop restart scale signal pause resume drain hold unhold reload logs events why exec upgrade install uninstall demo help" -f -a "wait" -d 'Wait until the pools are up'
complete -c selfstart -n "__fish_selfstart_using_subcommand help; and not __fish_seen_subcommand_from run check wait status deploy rollback releases start stop restart scale signal pause resume drain hold unhold reload logs events why exec upgrade install uninstall demo help" -f -a "status" -d 'Show the node: release, deploy, pools, workers'
complete -c selfstart -n "__fish_selfstart_using_subcommand help; and not __fish_seen_subcommand_from run check wait status deploy rollback releases start stop restart scale signal pause resume drain hold unhold reload logs events why exec upgrade install uninstall demo help" -f -a "deploy" -d 'Fetch and roll out now'
complete -c selfstart -n "__fish_selfstart_using_subcommand help; and not __fish_seen_subcommand_from run check wait status deploy rollback releases start stop restart scale signal pause resume drain hold unhold reload logs events why exec upgrade install uninstall demo help" -f -a "rollback" -d 'Go back to the previous good release, and hold updates'
complete -c selfstart -n "__fish_selfstart_using_subcommand help; and not __fish_seen_subcommand_from run check wait status deploy rollback releases start stop restart scale signal pause resume drain hold unhold reload logs events why exec upgrade install uninstall demo help" -f -a "releases" -d 'List the releases: state, age, size, who uses them'
complete -c selfstart -n "__fish_selfstart_using_subcommand help; and not __fish_seen_subcommand_from run check wait status deploy rollback releases start stop restart scale signal pause resume drain hold unhold reload logs events why exec upgrade install uninstall demo help" -f -a "start" -d 'Start what is stopped; ends a drain'
complete -c selfstart -n "__fish_selfstart_using_subcommand help; and not __fish_seen_subcommand_from run check wait status deploy rollback releases start stop restart scale signal pause resume drain hold unhold reload logs events why exec upgrade install uninstall demo help" -f -a "stop" -d 'Stop by the stop ladder, and stay stopped'
complete -c selfstart -n "__fish_selfstart_using_subcommand help; and not __fish_seen_subcommand_from run check wait status deploy rollback releases start stop restart scale signal pause resume drain hold unhold reload logs events why exec upgrade install uninstall demo help" -f -a "restart" -d 'Replace workers by new ones, in the order that the pool\'s `update` says'
complete -c selfstart -n "__fish_selfstart_using_subcommand help; and not __fish_seen_subcommand_from run check wait status deploy rollback releases start stop restart scale signal pause resume drain hold unhold reload logs events why exec upgrade install uninstall demo help" -f -a "scale" -d 'Change how many workers a pool has'
complete -c selfstart -n "__fish_selfstart_using_subcommand help; and not __fish_seen_subcommand_from run check wait status deploy rollback releases start stop restart scale signal pause resume drain hold unhold reload logs events why exec upgrade install uninstall demo help" -f -a "signal" -d 'Send a signal to the main processes of workers'
complete -c selfstart -n "__fish_selfstart_using_subcommand help; and not __fish_seen_subcommand_from run check wait status deploy rollback releases start stop restart scale signal pause resume drain hold unhold reload logs events why exec upgrade install uninstall demo help" -f -a "pause" -d 'Stop minding workers, without touching them'
complete -c selfstart -n "__fish_selfstart_using_subcommand help; and not __fish_seen_subcommand_from run check wait status deploy rollback releases start stop restart scale signal pause resume drain hold unhold reload logs events why exec upgrade install uninstall demo help" -f -a "resume" -d 'Mind them again'
complete -c selfstart -n "__fish_selfstart_using_subcommand help; and not __fish_seen_subcommand_from run check wait status deploy rollback releases start stop restart scale signal pause resume drain hold unhold reload logs events why exec upgrade install uninstall demo help" -f -a "drain" -d 'Stop all workers by their ladders and start none; the agent stays'
complete -c selfstart -n "__fish_selfstart_using_subcommand help; and not __fish_seen_subcommand_from run check wait status deploy rollback releases start stop restart scale signal pause resume drain hold unhold reload logs events why exec upgrade install uninstall demo help" -f -a "hold" -d 'No updates until `unhold`'
complete -c selfstart -n "__fish_selfstart_using_subcommand help; and not __fish_seen_subcommand_from run check wait status deploy rollback releases start stop restart scale signal pause resume drain hold unhold reload logs events why exec upgrade install uninstall demo help" -f -a "unhold" -d 'Updates again; deploys what was asked for meanwhile'
complete -c selfstart -n "__fish_selfstart_using_subcommand help; and not __fish_seen_subcommand_from run check wait status deploy rollback releases start stop restart scale signal pause resume drain hold unhold reload logs events why exec upgrade install uninstall demo help" -f -a "reload" -d 'Apply a changed configuration; restarts only what changed'
complete -c selfstart -n "__fish_selfstart_using_subcommand help; and not __fish_seen_subcommand_from run check wait status deploy rollback releases start stop restart scale signal pause resume drain hold unhold reload logs events why exec upgrade install uninstall demo help" -f -a "logs" -d 'Show the output of workers'
complete -c selfstart -n "__fish_selfstart_using_subcommand help; and not __fish_seen_subcommand_from run check wait status deploy rollback releases start stop restart scale signal pause resume drain hold unhold reload logs events why exec upgrade install uninstall demo help" -f -a "events" -d 'Show what happened'
complete -c selfstart -n "__fish_selfstart_using_subcommand help; and not __fish_seen_subcommand_from run check wait status deploy rollback releases start stop restart scale signal pause resume drain hold unhold reload logs events why exec upgrade install uninstall demo help" -f -a "why" -d 'Say why workers ended, or what became of the deploys'
complete -c selfstart -n "__fish_selfstart_using_subcommand help; and not __fish_seen_subcommand_from run check wait status deploy rollback releases start stop restart scale signal pause resume drain hold unhold reload logs events why exec upgrade install uninstall demo help" -f -a "exec" -d 'Run a command as a worker would be run now: its user, environment, directory'
complete -c selfstart -n "__fish_selfstart_using_subcommand help; and not __fish_seen_subcommand_from run check wait status deploy rollback releases start stop restart scale signal pause resume drain hold unhold reload logs events why exec upgrade install uninstall demo help" -f -a "upgrade" -d 'Renew selfstart itself, workers untouched'
complete -c selfstart -n "__fish_selfstart_using_subcommand help; and not __fish_seen_subcommand_from run check wait status deploy rollback releases start stop restart scale signal pause resume drain hold unhold reload logs events why exec upgrade install uninstall demo help" -f -a "install" -d 'Have selfstart started at boot, by systemd or rc.local'
complete -c selfstart -n "__fish_selfstart_using_subcommand help; and not __fish_seen_subcommand_from run check wait status deploy rollback releases start stop restart scale signal pause resume drain hold unhold reload logs events why exec upgrade install uninstall demo help" -f -a "uninstall" -d 'Take away what `install` made'
complete -c selfstart -n "__fish_selfstart_using_subcommand help; and not __fish_seen_subcommand_from run check wait status deploy rollback releases start stop restart scale signal pause resume drain hold unhold reload logs events why exec upgrade install uninstall demo help" -f -a "demo" -d 'Show a whole life on this machine, in a temporary folder'
complete -c selfstart -n "__fish_selfstart_using_subcommand help; and not __fish_seen_subcommand_from run check wait status deploy rollback releases start stop restart scale signal pause resume drain hold unhold reload logs events why exec upgrade install uninstall demo help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
