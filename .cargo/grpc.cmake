# Has gRPC's core built in half the time. CMake reads this twice: as the toolchain file that config.toml and
# .ci/static.sh name, and, since that says so, after project(grpc). What comes out is the same, less what is never called.

if(CMAKE_CXX_COMPILER_LOADED)
    function(less_work)
        # config.toml switches xDS off: a third of the files, most of them messages of Envoy.
        get_target_property(sources grpc SOURCES)
        list(FILTER sources EXCLUDE REGEX
            "/(envoy|udpa)/|/xds/[^/]+$|-generated/xds/(annotations|core|type)/|/filters/(rbac|stateful_session)/")
        set_property(TARGET grpc PROPERTY SOURCES ${sources})
        # With the others most of the work is to read the same headers again and again.
        foreach(header ${PROJECT_SOURCE_DIR}/include/grpc/support/port_platform.h
                <algorithm> <atomic> <functional> <map> <memory> <set> <string> <vector>
                src/core/lib/channel/promise_based_filter.h src/core/lib/config/core_configuration.h
                src/core/lib/gprpp/status_helper.h src/core/lib/json/json_object_loader.h
                src/core/lib/load_balancing/lb_policy.h src/core/lib/security/credentials/credentials.h
                src/core/lib/surface/channel.h src/core/lib/transport/transport.h)
            string(REGEX REPLACE "^src/" "${PROJECT_SOURCE_DIR}/src/" header ${header})
            string(REPLACE ">" "$<ANGLE-R>" header ${header})
            target_precompile_headers(grpc PRIVATE "$<$<COMPILE_LANGUAGE:CXX>:${header}>")
        endforeach()
    endfunction()
    cmake_language(DEFER CALL less_work) # when gRPC's CMakeLists.txt has been read
    return()
endif()

if(CMAKE_VERSION VERSION_GREATER_EQUAL 3.19)
    set(CMAKE_PROJECT_grpc_INCLUDE "${CMAKE_CURRENT_LIST_FILE}")
endif()
set(CMAKE_DISABLE_FIND_PACKAGE_systemd ON CACHE BOOL "") # whether or not the host has its headers

# The toolchain itself, where it is not the host's: what cargo-zigbuild would write into a file of its own.
if(DEFINED ENV{CARGO_ZIGBUILD_TARGET})
    string(REPLACE "-" "_" name "$ENV{TARGET}")
    string(REGEX REPLACE "-.*" "" CMAKE_SYSTEM_PROCESSOR "$ENV{TARGET}")
    set(CMAKE_SYSTEM_NAME Linux)
    set(CMAKE_C_COMPILER "$ENV{CC_${name}}")
    set(CMAKE_CXX_COMPILER "$ENV{CXX_${name}}")
    set(CMAKE_AR "$ENV{AR_${name}}")
    set(CMAKE_RANLIB "$ENV{RANLIB_${name}}")
    set(CMAKE_C_LINKER_DEPFILE_SUPPORTED FALSE)
    set(CMAKE_CXX_LINKER_DEPFILE_SUPPORTED FALSE)
    set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
    foreach(kind LIBRARY INCLUDE PACKAGE)
        set(CMAKE_FIND_ROOT_PATH_MODE_${kind} ONLY)
    endforeach()
endif()
